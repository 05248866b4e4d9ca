// All latents on a plane: similar decoder rows lie together.
import { html, Failed, number, Panel, Waiting, useMemo, useState } from "ui";
import { change, go, Link } from "place";
import { floats, useData } from "server";
import { Scatter } from "charts";
import { keep } from "notes";
import { nameOf, said, useTable, useWords } from "page/dictionary";

// each value's share of the others that lie below it: colours by rank, so that one wild latent does not take them all
export function ranks(values) {
  const order = Array.from(values.keys()).filter(i => Number.isFinite(values[i])).sort((a, b) => values[a] - values[b]);
  const out = new Float32Array(values.length).fill(NaN);
  order.forEach((i, place) => { out[i] = order.length > 1 ? place / (order.length - 1) : 0.5; });
  return out;
}

export function MapPage({ place, d }) {
  const table = useTable(d), held = useData("map", { d }), spoken = useWords(d);
  const [name, setName] = useState("");
  const value = held.old ? null : held.value;
  const [x, y] = useMemo(() => {
    if (!value) return [];
    const flat = floats(value.places);
    return [flat.filter((_, i) => i % 2 === 0), flat.filter((_, i) => i % 2 === 1)];
  }, [value]);
  const by = table.columns?.[place.by] ? place.by : table.columns?.density ? "density" : "decoder_norm";
  const color = useMemo(() => table.columns && ranks(table.columns[by]), [table.columns, by]);
  const chosen = (place.c || "").split(",").filter(Boolean).map(Number);
  if (held.error || table.error) return html`<${Failed} words=${held.error || table.error} />`;
  if (!x || !table.columns) return html`<${Waiting} words="laying out the map" />`;
  return html`<div class="lead"><h1>Map</h1><p class="soft wide">Latents whose decoder rows point in similar directions lie together. Draw around some to make a list of them.</p></div>
    <div class="overview"><${Panel} title="Decoder rows" help="The first two principal components of the decoder rows, each of length 1: a shadow of a space of hundreds of dimensions, in which near points may still be far apart.">
      <p class="axes">${value.method}, coloured by rank of <select aria-label="Colour" value=${by} onChange=${event => change({ by: event.target.value })}>${Object.keys(table.columns).map(one => html`<option value=${one} selected=${one === by}>${nameOf(one)}</option>`)}</select></p>
      <${Scatter} plain x=${x} y=${y} names=${["first component", "second component"]} color=${color} chosen=${chosen} height=${600} onOpen=${i => go("latent", { d, i })}
        onLasso=${found => change({ c: found.slice(0, 400).join(",") }, true)}
        tipOf=${i => { spoken.view([i]); return html`<div><b>${i}</b> <span class="mono">${said(spoken.of(i))}</span></div><div class="soft">${nameOf(by)} ${number(table.columns[by][i])}</div>`; }} /><//>
    <${Panel} title=${chosen.length ? `${chosen.length} chosen` : "Nothing chosen"} help="Latents inside the line that you drew; keep them as a list.">
      ${!chosen.length ? html`<p class="soft">Press on an empty place and draw a line around some points.</p>` : html`<${Chosen} d=${d} chosen=${chosen} spoken=${spoken} />
      <form class="row" onSubmit=${event => { event.preventDefault(); if (name.trim()) { keep({ put: [name.trim(), chosen.map(i => [d, i])] }); go("lists", { d }); } }}><input aria-label="Name of the list" placeholder="name of the list" maxlength="200" value=${name} onInput=${event => setName(event.target.value)} /><button type="submit">Keep as a list</button></form>`}<//></div>`;
}

function Chosen({ d, chosen, spoken }) {
  useMemo(() => spoken.view(chosen.slice(0, 60)), [chosen.join()]);
  return html`<ul class="plainlist">${chosen.slice(0, 60).map(i => html`<li><span><${Link} page="latent" state=${{ d, i }}>${i}<//> <span class="soft mono">${said(spoken.of(i))}</span></span></li>`)}</ul>`;
}
