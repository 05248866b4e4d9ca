// A latent: what is known of it, a text of one's own, and a note.
import { html, Failed, Panel, Waiting, useState, useEffect } from "ui";
import { cached, useData } from "server";
import { go, here, Link, change } from "place";
import { LatentView } from "latent-view";
import { Progress, useJob } from "jobs";
import { keep, noteOf, Star, useNotes } from "notes";
import { Tokens } from "tokens";
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

export function LatentPage({ place, d }) {
  const i = Number(place.i || 0);
  const { value: page, error, old } = useData("latent", { d, i });
  if (error) return html`<${Failed} words=${error} />`;
  if (!page) return html`<${Waiting} words=${`reading latent ${i}`} />`;
  const link = latent => html`<${Link} page="latent" state=${{ d, i: latent }}>${latent}<//>`;
  const actions = html`<p class="actions"><${Star} d=${d} i=${i} />
    <button type="button" onClick=${() => step(-1)} aria-label="Previous latent">‹ previous</button>
    <button type="button" onClick=${() => step(1)} aria-label="Next latent">next ›</button>
    <${Link} page="steer" state=${{ d, l: `${i}` }} class="button">Steer<//>
    <${Link} page="compare" state=${{ d, a: i, b: page.neighbours?.decoder[0]?.latent }} class="button">Compare<//>
    <a class="button" href=${`/api/export?d=${encodeURIComponent(d)}&i=${i}`} download>Save as a file</a></p>`;
  return html`<div class=${old ? "old" : ""}><${LatentView} page=${page} link=${link} actions=${actions}
    below=${html`<${Try} d=${d} i=${i} text=${place.t || ""} key=${`try ${d} ${i}`} />`} />
    <${Note} d=${d} i=${i} key=${`note ${d} ${i}`} /></div>`;
}

function Try({ d, i, text }) {
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
      ${!strongest && html`<p class="soft">It does not fire on this text.</p>`}`}
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
