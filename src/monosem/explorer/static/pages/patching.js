// Which places carry an answer: a clean prompt's states, written one by one into a corrupted one.
import { html, Field, number, Panel, useEffect, useState, at, away } from "ui";
import { change } from "place";
import { Progress, useJob } from "jobs";
import { quoted, sign } from "tokens";

const USUAL = { t: "The capital of France is", o: "The capital of Italy is", r: " Paris", w: " Rome" };

export function Patching({ place, d }) {
  const { job, run, cancel, busy } = useJob();
  const [held, setHeld] = useState(Object.fromEntries(Object.keys(USUAL).map(name => [name, place[name] ?? USUAL[name]])));
  const start = event => { event?.preventDefault(); change(held); run("patch", { dictionary: d, text: held.t, corrupted: held.o, answer: held.r, wrong: held.w }); };
  useEffect(() => { if (place.t) start(); }, []);
  const field = (name, label) => html`<${Field} label=${label}><input class="mono" maxlength=${name.length === 1 && "to".includes(name) ? 4000 : 100} value=${held[name]} onInput=${event => setHeld({ ...held, [name]: event.target.value })} /><//>`;
  const found = job?.result;
  return html`<div class="lead"><h1>Where is the answer?</h1><p class="soft wide">Two prompts of the same number of tokens, with different answers. Every state of the first is written into the second: where the first answer comes back, it was carried there.</p></div>
    <form onSubmit=${start}><${Panel} title="Prompts" help="The answers are one token each; most tokens begin with a space.">
      <div class="two">${field("t", "clean prompt")}${field("r", "right answer")}${field("o", "corrupted prompt")}${field("w", "wrong answer")}</div>
      <div class="row"><button type="submit" class="first" disabled=${busy}>Patch</button></div><${Progress} job=${job} cancel=${cancel} /><//></form>
    ${found && html`<${Heat} found=${found} />`}`;
}

function Heat({ found }) {
  const name = Object.keys(found.clean)[0], clean = found.clean[name], broken = found.broken[name];
  const layers = [...new Set(found.rows.map(row => row.layer))].sort((a, b) => b - a);
  const score = new Map(found.rows.map(row => [`${row.layer} ${row.position}`, row.score]));
  return html`<${Panel} title="Layers × tokens" help="1 (full blue) is the clean run's logit difference, 0 the corrupted run's; orange is below 0. Each cell is one state of the stream before that layer.">
    <p class="facts"><span>The clean answer leads by <b>${number(clean)}</b> in the clean prompt, by <b>${number(broken)}</b> in the corrupted one (logits).</span></p>
    <div class="matrix heat" tabindex="0" role="region" aria-label="Layers by tokens"><table><thead><tr><th scope="col" class="corner">layer</th>${found.tokens.map((token, p) => html`<th scope="col"><span class="head mono">${quoted(token)}${found.corrupted[p] !== token && html`<br /><span class="soft">${quoted(found.corrupted[p])}</span>`}</span></th>`)}</tr></thead>
    <tbody>${layers.map(layer => html`<tr><th scope="row">${layer}</th>${found.tokens.map((token, p) => { const value = score.get(`${layer} ${p}`);
      return html`<td class=${`cell${sign(value)}`} style=${{ "--v": Math.min(Math.abs(value ?? 0), 1) }} onMouseMove=${event => at(event, html`<div>before layer ${layer} at <b class="mono">${quoted(token)}</b></div><div>restores <b>${number(value)}</b></div>`)} onMouseLeave=${away}></td>`; })}</tr>`)}</tbody></table></div><//>`;
}
