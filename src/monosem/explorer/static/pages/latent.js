// A latent: what is known of it, a text of one's own, and a note.
import { html, Failed, number, Panel, Waiting, useState, useEffect, at, away } from "ui";
import { cached, useData } from "server";
import { go, here, Link, change } from "place";
import { LatentView } from "latent-view";
import { Progress, useJob } from "jobs";
import { Kin } from "kin";
import { Making } from "making";
import { keep, noteOf, Star, useNotes } from "notes";
import { quoted, sign, strength, Tokens, visible } from "tokens";
import { last } from "page/dictionary";

// the next latent in the order of the table that was seen last; null: any
export async function step(by) {
  const { page, d, i } = here();
  if (page !== "latent" && by !== null) return;
  const home = await cached("home", {}), name = d || home.dictionaries.find(one => !one.error)?.name;
  const width = home.dictionaries.find(one => one.name === name)?.width;
  if (!width) return;
  const order = last.d === name ? last.order : null, now = Number(i);
  let next;
  if (by === null) next = Math.floor(Math.random() * width);
  else if (order && order.includes(now)) next = order[(order.indexOf(now) + by + order.length) % order.length];
  else next = (now + by + width) % width;
  go("latent", { d: name, i: next });
}
export const explain = () => document.getElementById("note")?.focus();

export function LatentPage({ place, d, home }) {
  const i = Number(place.i || 0);
  const { value: stored, error, old } = useData("latent", { d, i });
  const more = useJob(), added = more.job?.result && more.job.asked.latent === i ? more.job.result : null;
  const page = stored && added ? { ...stored, ...added, missing: Object.fromEntries(Object.entries(stored.missing).filter(([name]) => !(name in added))) } : stored;
  const about = home.dictionaries.find(one => one.name === d);
  if (error) return html`<${Failed} words=${error} />`;
  if (!page) return html`<${Waiting} words=${`reading latent ${i}`} />`;
  const link = latent => html`<${Link} page="latent" state=${{ d, i: latent }}>${latent}<//>`;
  const actions = html`<p class="actions"><${Star} d=${d} i=${i} />
    <button type="button" onClick=${() => step(-1)} aria-label="Previous latent">‹ previous</button>
    <button type="button" onClick=${() => step(1)} aria-label="Next latent">next ›</button>
    <${Link} page="steer" state=${{ d, l: `${i}` }} class="button">Steer<//>
    <${Link} page="compare" state=${{ d, a: i, b: page.neighbours?.decoder[0]?.latent }} class="button">Compare<//>
    ${!added && html`<button type="button" disabled=${more.busy} onClick=${() => more.run("weights", { dictionary: d, latent: i })}>More from the model's weights</button>`}
    <a class="button" href=${`/api/export?d=${encodeURIComponent(d)}&i=${i}`} download>Save as a file</a></p><${Progress} job=${more.job} cancel=${more.cancel} />`;
  const effect = example => html`<${Effect} d=${d} i=${i} example=${example} key=${example.ids.join(" ")} />`;
  return html`<div class=${old ? "old" : ""}><${LatentView} page=${page} link=${link} actions=${actions} effect=${effect} making=${html`<${Making} d=${d} home=${home} key=${`index ${d}`} />`}
    aside=${html`<${Kin} d=${d} i=${i} home=${home} key=${`kin ${d} ${i}`} />`}
    below=${html`<${Try} heads=${about?.heads} d=${d} i=${i} text=${place.t || ""} key=${`try ${d} ${i}`} />`} />
    <${Note} d=${d} i=${i} key=${`note ${d} ${i}`} /></div>`;
}

// What removing the latent does at each token of an example; asked for when one wants to know, for it runs the model twice.
function Effect({ d, i, example }) {
  const { job, run, cancel, busy } = useJob();
  const rows = job?.result?.rows, most = rows && Math.max(...rows.map(row => Math.abs(row.loss_change ?? 0)), 1e-9);
  const listed = pairs => pairs.map(([token, value]) => html`<span class="mono">${quoted(token)} <span class="soft">${number(value, 2)}</span> </span>`);
  const over = (event, row, token) => at(event, html`<div>after <b class="mono">${quoted(token)}</b></div>
    <div>loss of the next token <b>${row.loss_change >= 0 ? "+" : ""}${number(row.loss_change)}</b> nats without the latent${row.direct_loss_change !== null ? `, ${number(row.direct_loss_change)} by the direct path` : ""}</div>
    <div>KL ${number(row.kl)} nats</div><div>it raises ${listed(row.raised)}</div><div>it lowers ${listed(row.lowered)}</div>`);
  return html`<span class="effect">${!rows ? html`${!busy && html`<button type="button" class="link" onClick=${() => run("removed", { dictionary: d, latent: i, ids: example.ids })} title="Run the model with and without this latent here, and see what changes">without it?</button>`}<${Progress} job=${job} cancel=${cancel} />`
    : html`<span class="soft">loss without it: </span><span class="tokens">${job.result.tokens.map((token, p) => html`<span class=${`tok${sign(rows[p].loss_change)}`} style=${{ "--v": strength(Math.abs(rows[p].loss_change ?? 0) / most) }}
      onMouseMove=${event => over(event, rows[p], token)} onMouseLeave=${away}>${visible(token)}</span>`)}</span> <span class="soft">blue: higher, orange: lower, by up to ${number(most)} nats; hover for the tokens</span>`}</span>`;
}

// For latents of attention: what each head gives, looking at each token.
function SourcesOf({ d, i, text, position }) {
  const { job, run, cancel } = useJob();
  useEffect(() => { run("sources", { dictionary: d, latent: i, text, position }); }, [d, i, text, position]);
  const found = job?.result, most = found && Math.max(...found.values.flat().map(Math.abs), 1e-9);
  const sums = found && found.values[0].map((_, s) => found.values.reduce((sum, row) => sum + row[s], 0));
  return html`<${Panel} title="Where it comes from" name="sources" help="What each head, looking at each token, adds to the latent before its threshold at the chosen token; rows and the bias add up to it exactly.">
    <${Progress} job=${job} cancel=${cancel} />
    ${found && html`<p class="soft">before the threshold <b>${number(found.preactivation)}</b>, of which the bias <b>${number(found.bias)}</b></p>
    <div class="matrix heat" tabindex="0" role="region" aria-label="Heads by tokens"><table><thead><tr><th scope="col" class="corner">head</th>${found.tokens.slice(0, sums.length).map(token => html`<th scope="col"><span class="head mono">${quoted(token)}</span></th>`)}</tr></thead>
      <tbody>${[...found.values.map((row, h) => [h, row]), ["all", sums]].map(([h, row]) => html`<tr><th scope="row">${h}</th>${row.map((value, s) => html`<td class=${`cell${sign(value)}`} style=${{ "--v": strength(Math.min(Math.abs(value) / most, 1)) }}
        onMouseMove=${event => at(event, html`<div>head ${h}, looking at <b class="mono">${quoted(found.tokens[s])}</b></div><div>adds <b>${number(value)}</b></div>`)} onMouseLeave=${away}></td>`)}</tr>`)}</tbody></table></div>`}<//>`;
}

function Try({ d, i, text, heads }) {
  const { job, run, cancel, busy } = useJob();
  const [typed, setTyped] = useState(text);
  const start = event => { event?.preventDefault(); if (typed.trim()) { change({ t: typed }); run("try", { dictionary: d, latent: i, text: typed }); } };
  useEffect(() => { if (text) start(); }, []);
  const found = job?.result;
  const strongest = found ? Math.max(...found.activations.map(Math.abs)) : 0;
  return html`<${Panel} title="Try a text" name="try" help="The model reads your text, and each token gets the activation that the latent has there.">
    <form class="try" onSubmit=${start}><textarea rows="2" aria-label="A text of your own" value=${typed} placeholder="Write a text and press Enter" maxlength="4000"
      onInput=${event => setTyped(event.target.value)} onKeyDown=${event => event.key === "Enter" && !event.shiftKey && start(event)}></textarea>
      <button type="submit" disabled=${busy}>Read it</button></form>
    <${Progress} job=${job} cancel=${cancel} />
    ${found && html`<p class="tried"><${Tokens} tokens=${found.tokens} activations=${found.activations} counted=${found.counted} maximum=${found.maximum || strongest} /></p>
      ${!strongest && html`<p class="soft">It does not fire on this text.</p>`}
      ${heads && html`<${SourcesOf} d=${d} i=${i} text=${job.asked.text} position=${found.activations.reduce((best, value, p) => Math.abs(value) > Math.abs(found.activations[best]) ? p : best, found.activations.length - 1)} />`}`}
  <//>`;
}

function Note({ d, i }) {
  const held = useNotes(), text = noteOf(held, d, i);
  const [typed, setTyped] = useState(null);
  const save = () => typed !== null && typed !== text && keep({ note: { dictionary: d, latent: i, text: typed } });
  return html`<${Panel} title="Note" name="note" help="What you think the latent does; it is kept on this machine, and can be exported with your lists.">
    <textarea id="note" rows="2" aria-label="Your note" maxlength="10000" value=${typed ?? text} onInput=${event => setTyped(event.target.value)} onBlur=${save}
      onKeyDown=${event => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); event.target.blur(); } }}></textarea><//>`;
}
