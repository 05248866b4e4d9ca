// A latent as a sum of meta-latents, and which other latents share each of them.
import { html, Failed, Help, number, percent, Waiting, useEffect, useMemo } from "ui";
import { floats } from "server";
import { change, Link } from "place";
import { Progress } from "jobs";
import { said, useWords } from "page/dictionary";
import { useComputed, Views } from "page/geometry";

const SHARING = 8;

export function Meta({ place, d, home }) {
  const about = home.dictionaries.find(one => one.name === d), where = one => `${one.place} ${one.model}`;
  const found = home.dictionaries.filter(one => !one.error && one.meta_of && one.name !== d && about && where(one) === where(about));
  const e = found.some(one => one.name === place.e) ? place.e : found[0]?.name, i = Math.min(Number(place.i) || 0, (about?.width || 1) - 1);
  const { value, error, job, cancel, start } = useComputed(e ? "meta" : null, { dictionary: d, meta: e });
  useEffect(() => { if (value === null && !job) start(); }, [value]);
  return html`<div class="lead"><h1>What is a latent made of?</h1><p class="soft wide">A meta-SAE is a small dictionary of decoder rows: its latents are directions that several latents share.</p></div>
    <${Views} now="meta" d=${d} />
    ${!e ? html`<p class="soft wide">No meta-SAE of ${d} is open. Train one and name it:</p><pre tabindex="0" aria-label="Commands">monosem train --model ${about?.model || "MODEL"} --site ${about?.writes || about?.site || "SITE"} --meta-of ${d} \\
    --kind batchtopk -k 4 --width ${Math.max(4, Math.round((about?.width || 4096) / 4))} --tokens 300000 --batch-tokens ${Math.min(1024, 2 ** Math.floor(Math.log2((about?.width || 4096) / 2)))} \\
    --out runs/meta
monosem explore ${d} runs/meta/dictionary</pre>`
      : html`<div class="row"><label class="field"><span>latent</span><input type="number" min="0" max=${about.width - 1} value=${i} onChange=${event => change({ i: event.target.value }, true)} /></label>
        <label class="field"><span>meta-SAE</span><select value=${e} onChange=${event => change({ e: event.target.value }, true)}>${found.map(one => html`<option value=${one.name} selected=${one.name === e}>${one.name}</option>`)}</select></label></div>
      ${error ? html`<${Failed} words=${error} />` : !value ? html`<${Progress} job=${job} cancel=${cancel} />${!job && html`<${Waiting} />`}` : html`<${Parts} d=${d} e=${e} i=${i} found=${value} />`}`}`;
}

function Parts({ d, e, i, found }) {
  const columns = useMemo(() => Object.fromEntries(["latent", "meta", "activation", "given", "explained"].map(name => [name, floats(found[name])])), [found]);
  const rows = [];
  for (let at = 0; at < columns.latent.length; at++) if (columns.latent[at] === i) rows.push(at);
  rows.sort((a, b) => columns.given[b] - columns.given[a]);
  const sharing = meta => { const some = []; for (let at = 0; at < columns.meta.length; at++) if (columns.meta[at] === meta && columns.latent[at] !== i) some.push(at); return some.sort((a, b) => columns.activation[b] - columns.activation[a]); };
  const shared = rows.map(at => sharing(columns.meta[at])), spoken = useWords(d);
  const shown = shared.flatMap(some => some.slice(0, SHARING).map(at => columns.latent[at]));
  useEffect(() => spoken.view([i, ...shown]), [i, shown.join()]);
  return html`<p class="facts"><span><b>${i}</b> <span class="mono">${said(spoken.of(i))}</span></span><span><b>${percent(columns.explained[i])}</b> of its row explained</span><${Link} page="latent" state=${{ d, i }}>its page<//></p>
    ${!rows.length && html`<p class="soft">No meta-latent fires at its row.</p>`}
    <div class="cards">${rows.map((at, k) => html`<section class="panel"><div class="title"><h2>Meta-latent <${Link} page="latent" state=${{ d: e, i: columns.meta[at] }}>${columns.meta[at]}<//></h2><${Help} title=${`meta-latent ${columns.meta[at]}`}>A direction that several latents share; each latent below has the meta-latent's activation at its decoder row.<//></div>
      <p class="soft">gives ${percent(columns.given[at])} of the row; ${number(shared[k].length)} other latents share it</p>
      <ul class="plainlist">${shared[k].slice(0, SHARING).map(one => html`<li><span><${Link} page="meta" state=${{ d, e, i: columns.latent[one] }}>${columns.latent[one]}<//> <span class="soft">${number(columns.activation[one], 2)}</span> <span class="soft mono">${said(spoken.of(columns.latent[one]))}</span></span></li>`)}</ul></section>`)}</div>`;
}
