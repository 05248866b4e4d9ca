// Turn latents up or down and read what the model says, beside what it says without.
import { html, Field, number, Panel, percent, useEffect, useMemo, useState } from "ui";
import { change, go, Link } from "place";
import { Progress, useJob } from "jobs";
import { useData } from "server";
import { quoted, visible } from "tokens";
import { said, useTable, useWords } from "page/dictionary";

const HOWS = { add: "add to it", set: "set it", multiply: "multiply it" };
export const doses = text => (text || "").split(",").filter(Boolean).map(part => {
  const [latent, value] = part.split(":");
  return { latent: Number(latent), value: value === undefined || value === "" ? null : Number(value) };
}).filter(one => Number.isInteger(one.latent) && one.latent >= 0);
const written = list => list.map(one => (one.value === null ? one.latent : `${one.latent}:${one.value}`)).join(",");

export function Steer({ place, d }) {
  const { job, run, cancel, busy } = useJob();
  const table = useTable(d), maxima = table.columns?.maximum, spoken = useWords(d);
  const how = HOWS[place.how] ? place.how : "add";
  const usual = latent => (how === "multiply" ? 0 : Math.round(1.5 * (maxima?.[latent] || 20)));
  const list = doses(place.l).map(one => ({ ...one, value: Number.isFinite(one.value) && one.value !== null ? one.value : usual(one.latent) }));
  const [text, setText] = useState(place.t || "From my experience,");
  useEffect(() => spoken.view(list.map(one => one.latent)), [place.l, d]);
  const setList = next => change({ l: written(next) });
  const start = event => {
    event?.preventDefault();
    change({ t: text });
    run("steer", { dictionary: d, text, doses: list, how, tokens: Number(place.n) || 60, temperature: Number(place.temp) || 0, seed: Number(place.seed) || 0, chat: place.chat === "1" });
  };
  const add = event => { event.preventDefault(); const field = event.target.elements.latent, latent = Number(field.value);
    if (field.value !== "" && Number.isInteger(latent) && latent >= 0 && latent < (table.width || 0)) { setList([...list.filter(one => one.latent !== latent), { latent, value: usual(latent) }]); field.value = ""; } };
  return html`<div class="lead"><h1>Steer</h1><p class="soft wide">Change latents while the model writes, and read it beside what it would have written.</p></div>
    <${Panel} title="What is changed" help="Each latent in its own units, at every token that the dictionary was trained on; the rest of the activation stays as it is. Values beyond 1 to 3 times the maximum often break the text.">
      ${list.map(one => { const most = maxima?.[one.latent] || 20, reach = how === "multiply" ? 5 : 4 * most; const set = value => setList(list.map(other => other.latent === one.latent ? { ...one, value } : other));
        return html`<div class="dose" key=${one.latent}>
          <span class="what"><${Link} page="latent" state=${{ d, i: one.latent }}>${one.latent}<//> <span class="soft mono">${said(spoken.of(one.latent))}</span></span>
          <input type="range" aria-label=${`Strength of latent ${one.latent}`} min=${how === "multiply" ? 0 : -reach} max=${reach} step=${reach / 80} value=${one.value} onInput=${event => set(Number(Number(event.target.value).toPrecision(3)))} />
          <input type="number" step="any" aria-label=${`Value of latent ${one.latent}`} value=${one.value} onChange=${event => set(Number(event.target.value))} />
          <span class="soft of">${how !== "multiply" && maxima ? `${number(one.value / most, 2)} × its maximum` : ""}</span>
          <button type="button" class="plain" aria-label=${`Remove latent ${one.latent}`} onClick=${() => setList(list.filter(other => other !== one))}>✕</button></div>`; })}
      <form class="row" onSubmit=${add}><input name="latent" type="number" min="0" placeholder="latent" aria-label="Number of a latent to add" /><button type="submit">Add a latent</button>
        <select aria-label="How it is changed" value=${how} onChange=${event => change({ how: event.target.value, l: list.map(one => one.latent).join(",") })}>${Object.entries(HOWS).map(([name, words]) => html`<option value=${name} selected=${name === how}>${words}</option>`)}</select></form>
    <//>
    <form onSubmit=${start}><${Panel} title="Prompt" help="What the model goes on from, without and with the change.">
      <textarea rows="3" aria-label="Prompt" maxlength="4000" value=${text} onInput=${event => setText(event.target.value)} onKeyDown=${event => event.key === "Enter" && (event.ctrlKey || event.metaKey) && start(event)}></textarea>
      <div class="row"><${Field} label="tokens"><input type="number" min="1" max="400" value=${place.n || 60} onChange=${event => change({ n: event.target.value })} /><//>
        <${Field} label="temperature"><input type="number" min="0" max="5" step="0.1" value=${place.temp || 0} onChange=${event => change({ temp: event.target.value })} /><//>
        <${Field} label="seed"><input type="number" min="0" value=${place.seed || 0} onChange=${event => change({ seed: event.target.value })} /><//>
        <label class="check"><input type="checkbox" checked=${place.chat === "1"} onChange=${event => change({ chat: event.target.checked ? "1" : "" })} /> as a chat</label>
        <button type="submit" class="first" disabled=${busy || !list.length || !text.trim()}>Write</button></div>
      <${Progress} job=${job} cancel=${cancel} /><//></form>
    ${job && html`<div class="pair sides"><${Side} title="Without" texts=${job.sides.plain} busy=${busy} perplexity=${job.result?.row.baseline_perplexity} />
      <${Side} title="With" texts=${job.sides.steered} busy=${busy} perplexity=${job.result?.row.edited_perplexity} /></div>`}
    ${job?.result && html`<${Changes} rows=${job.result.changes} kl=${job.result.row.kl} />`}`;
}

function Side({ title, texts, busy, perplexity }) {
  return html`<section class="panel side-text" aria-label=${title} aria-live="off"><h2>${title}</h2><p>${texts ? visible(texts.join("").trimStart()).replace(/↵/g, "↵\n") : ""}${busy && html`<span class="caret" aria-hidden="true"></span>`}</p>
    ${perplexity !== undefined && perplexity !== null && html`<p class="soft">perplexity ${number(perplexity)} under the unchanged model</p>`}</section>`;
}

function Changes({ rows, kl }) {
  const most = Math.max(...rows.map(row => Math.max(row.before, row.after)), 1e-9);
  return html`<${Panel} title="The first new token" help="Its likeliest candidates without and with the change, by how much their log-probability moves. KL is from the unchanged distribution, in nats.">
    <p class="soft">KL ${number(kl)} nats</p><div class="scrolls" tabindex="0" role="region" aria-label="Changed tokens"><table class="changes"><thead><tr><th scope="col">token</th><th scope="col" class="n">without</th><th scope="col" class="n">with</th></tr></thead>
    <tbody>${rows.map(row => html`<tr><th scope="row" class="mono">${quoted(row.token)}</th>${[row.before, row.after].map(p => html`<td class="n"><span class="meter" style=${{ "--w": p / most }}>${percent(p)}</span></td>`)}</tr>`)}</tbody></table></div><//>`;
}
