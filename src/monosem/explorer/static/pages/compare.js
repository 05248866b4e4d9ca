// Two latents beside each other, and the nearest ones in other dictionaries.
import { html, Failed, number, Panel, Waiting, useState } from "ui";
import { useData } from "server";
import { change, Link } from "place";
import { LatentView } from "latent-view";
import { quoted } from "tokens";
import { Kin } from "kin";

export function Compare({ place, d, home }) {
  const e = place.e || d, a = Number(place.a || 0), b = Number(place.b || 1);
  const left = useData("latent", { d, i: a }), right = useData("latent", { d: e, i: b });
  const relation = useData("relation", { d, i: a, e, j: b });
  const usable = home.dictionaries.filter(one => !one.error);
  const pick = (name, value) => html`<input type="number" min="0" aria-label=${`${name} latent`} value=${value} onChange=${event => change({ [name === "first" ? "a" : "b"]: event.target.value }, true)} />`;
  const view = (held, own) => held.error ? html`<${Failed} words=${held.error} />` : !held.value ? html`<${Waiting} />`
    : html`<${LatentView} page=${held.value} link=${i => html`<${Link} page="latent" state=${{ d: own, i }}>${i}<//>`} />`;
  return html`<div class="lead"><h1>Compare</h1><p class="soft wide">Two latents beside each other, of one dictionary or of two.</p>
      <div class="row">${pick("first", a)} <span class="soft">of ${d}, with</span> ${pick("second", b)} <span class="soft">of</span>
        <select aria-label="Dictionary of the second latent" value=${e} onChange=${event => change({ e: event.target.value === d ? "" : event.target.value }, true)}>
          ${usable.map(one => html`<option value=${one.name} selected=${one.name === e}>${one.name}</option>`)}</select></div></div>
    <${Failed} words=${relation.error} />
    ${relation.value && html`<${Panel} title="Together" help="Cosines of their rows, and the tokens that both fire on or promote.">
      <p class="facts"><span>decoder rows: cosine <b>${number(relation.value.decoder)}</b></span><span>encoder rows: cosine <b>${number(relation.value.encoder)}</b></span></p>
      <p class="soft">${relation.value.fires_on.length ? html`Both fire on <span class="mono">${relation.value.fires_on.map(quoted).join("  ")}</span>` : "They share none of the tokens on which each fires most."}</p>
      <p class="soft">${relation.value.promotes.length ? html`Both promote <span class="mono">${relation.value.promotes.map(quoted).join("  ")}</span>` : "They share none of the tokens that each promotes most."}</p><//>`}
    <div class="pair both">${view(left, d)}${view(right, e)}</div>
    <${Kin} d=${d} i=${a} home=${home} key=${`kin ${d} ${a}`} />`;
}
