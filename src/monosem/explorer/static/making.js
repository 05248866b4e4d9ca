// An index made here: of a file that one chooses, or of a text that the command line named.
import { html, number, Field, Panel, shared, useEffect, useState } from "ui";
import { forget, get, post, send } from "server";
import { ENDED, Progress } from "jobs";
import { Link } from "place";

const USUAL = 100000, SPEED = 550; // tokens; tokens a second of smollm2 on two cores
const now = shared(null); // {d, id, state, words, error}
const running = job => Boolean(job) && !ENDED.includes(job.state);

// the job goes on when a page is left or loaded again, so that it is told of here, for all pages
function follow(d, id, words) {
  now.set({ d, id, state: "waiting", words });
  const events = new EventSource(`/api/jobs/${id}/events`);
  events.onmessage = message => {
    const event = JSON.parse(message.data);
    if (ENDED.includes(event.type)) events.close();
    now.set({ d, id, state: event.type === "progress" ? "running" : event.type, words: event.words, error: event.words });
    if (event.type === "done") forget();
  };
  events.onerror = () => now.set(events.readyState === EventSource.CLOSED ? { d, id, state: "failed", error: "the server is gone; start it again" } : { ...now.get(), words: "the server does not answer; asking again" });
}
const TITLE = "index: ";
const find = () => get("jobs").then(jobs => { const job = jobs.find(one => one.kind === "index" && running(one)); if (job && !running(now.get())) follow(job.title.slice(TITLE.length), job.id, "waiting"); }, () => {});
find();
const cancel = () => post(`jobs/${now.get().id}/cancel`).catch(() => {});

// in the bar, while one reads other pages
export function MakingNow() {
  const job = now.use();
  return running(job) && html`<${Link} page="dictionary" state=${{ d: job.d }} class="soft" title=${`index of ${job.d}: ${job.words}`}>making an index<//>`;
}

function timeOf(tokens) {
  const minutes = tokens / SPEED / 60;
  return minutes < 1.5 ? "about a minute" : minutes < 90 ? `about ${Math.round(minutes)} minutes` : `about ${Math.round(minutes / 60)} hours`;
}

export function Making({ d, home, panel }) {
  const job = now.use(), own = job?.d === d ? job : null, { named, most, endings } = home.texts;
  const read = home.dictionaries.find(one => one.name === d)?.tokens || 0;
  const [file, setFile] = useState(null), [from, setFrom] = useState(named.length ? "0" : ""), [tokens, setTokens] = useState(USUAL), [wrong, setWrong] = useState(null), [sending, setSending] = useState(false);
  const start = async event => {
    event.preventDefault();
    setWrong(from === "" && !file ? "choose a file" : from === "" && file.size > most ? `${file.name} is too large: a file may have ${most / 1e6} MB; a larger text is named with --text when the explorer is started` : null);
    if (from === "" && (!file || file.size > most)) return;
    setSending(true);
    try {
      const text = from === "" ? { sent: (await send(file)).sent } : { named: Number(from) };
      follow(d, (await post("jobs", { kind: "index", dictionary: d, tokens: Number(tokens), ...text })).id, "waiting for the model");
    } catch (error) { setWrong(error.message); find(); } // another tab may have begun
    setSending(false);
  };
  const form = html`<form class="making" onSubmit=${start}>
    <div class="row">${named.length > 0 && html`<${Field} label="Text"><select value=${from} onChange=${event => setFrom(event.target.value)}>${named.map((path, i) => html`<option value=${String(i)} selected=${from === String(i)}>${path}</option>`)}<option value="" selected=${from === ""}>a file</option></select><//>`}
      ${from === "" && html`<${Field} label=${`A text of yours (${endings.join(", ")})`}><input type="file" accept=${endings.join(",")} onChange=${event => setFile(event.target.files[0])} /><//>`}
      <${Field} label="Tokens"><input type="number" min="1000" max="10000000" step="1000" value=${tokens} onInput=${event => setTokens(event.target.value)} /><//>
      <button type="submit" class=${panel ? "first" : ""} disabled=${running(job) || sending}>Make an index</button></div>
    <p class="soft">The model reads the text on this machine: ${number(Number(tokens))} tokens take ${timeOf(tokens)} with smollm2 on two cores, longer with larger models. Cancelled, it goes on when you ask again.${read > tokens && html` The index that is shown now has read ${number(read)}: of fewer tokens, rare latents have fewer examples, and some none. The dictionary's page has the way back to it.`}</p>
    ${sending ? html`<p class="waiting" role="status"><span class="dots" aria-hidden="true"></span>sending the text</p>` : html`${wrong && html`<p class="failed" role="alert">${wrong}</p>`}<${Progress} job=${own} cancel=${cancel} />`}</form>`;
  return panel ? html`<${Panel} title="Read a text" name="making" help="The pass over a text finds where each latent fires; without it, pages show what the weights alone say.">${form}<//>` : form;
}

// which index is shown, and the way to the other one
export function Which({ about }) {
  const [wrong, setWrong] = useState(null);
  if (!about.index || (about.index === "beside" && !about.made)) return null;
  const use = which => post("index", { dictionary: about.name, use: which }).then(forget, error => setWrong(error.message));
  const said = { made: "an index that was made here", named: "the index that was named at the start", beside: "the index beside the dictionary" }[about.index];
  return html`<p class="soft">From ${said}${about.corpus ? `, of ${about.corpus.length > 60 ? `${about.corpus.slice(0, 60)}…` : about.corpus}` : ""}${about.index === "made" && about.beside ? html` · <button type="button" class="link" onClick=${() => use("beside")}>back to the one that came with it</button>` : about.index === "beside" && about.made ? html` · <button type="button" class="link" onClick=${() => use("made")}>use the one made here</button>` : ""}${wrong && html` <span class="failed" role="alert">${wrong}</span>`}</p>`;
}
