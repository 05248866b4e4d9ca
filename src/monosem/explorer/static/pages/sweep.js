// A sweep of latents: what each one made the model write, the most steerable first.
import { html, Failed, Field, Help, number, Panel, Waiting, useEffect, useMemo, useRef, useState } from "ui";
import { floats, get, useData } from "server";
import { change, Link } from "place";
import { Grid } from "grid";
import { Scatter } from "scatter";
import { visible } from "tokens";
import { filterOf, ordered, said, useWords } from "page/dictionary";

const COLUMNS = {
  latent: ["latent", "its number"],
  value: ["set to", "the value that it was clamped to"],
  score: ["score", "effect divided by one plus the nats a token by which the text is odder than the unchanged one; for ranking only"],
  kl: ["effect", "KL from the unchanged model at the next token, in nats"],
  perplexity: ["perplexity", "of the text under the unchanged model: high is odd"],
  distinct_2: ["distinct", "distinct pairs of tokens; near 0 is a loop"],
};

export function SweepPage({ place, home }) {
  const number_ = Number(place.n || 0), about = home.sweeps.find(one => one.number === number_);
  const held = useData(about ? "sweep" : null, { n: number_ });
  if (!home.sweeps.length) return html`<div class="lead"><h1>What do latents make the model say?</h1><p class="soft wide">No sweep is open. One clamps every latent of a dictionary and keeps what the model writes:</p>
    <pre tabindex="0" aria-label="Commands">monosem sweep smollm2/resid_post.15 --out runs/sweep\nmonosem explore --sweep runs/sweep</pre></div>`;
  if (!about) return html`<${Failed} words=${`there is no sweep ${place.n}`} />`;
  if (held.error) return html`<${Failed} words=${held.error} />`;
  if (!held.value || held.old) return html`<${Waiting} words="reading the sweep" />`;
  return html`<${Atlas} place=${place} home=${home} about=${about} held=${held.value} key=${number_} />`;
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

function useTexts(n) {
  const texts = useRef(new Map()).current, wanted = useRef(new Set()).current, waiting = useRef(null), [, again] = useState(0);
  const ask = () => {
    const rows = [...wanted].slice(0, 200);
    for (const row of rows) wanted.delete(row);
    get("sweep_rows", { n, i: rows.join(",") }).then(found => { for (const one of found) texts.set(one.row, one.text); again(count => count + 1); }, () => {});
  };
  const view = rows => { // what several parts of the page want is asked for together
    for (const row of rows) if (!texts.has(row)) wanted.add(row);
    clearTimeout(waiting.current);
    if (wanted.size) waiting.current = setTimeout(ask, 60);
  };
  useEffect(() => () => clearTimeout(waiting.current), []);
  return { view, of: row => texts.get(row) };
}

function Atlas({ place, home, about, held }) {
  const columns = useMemo(() => Object.fromEntries(Object.entries(held.columns).map(([name, coded]) => [name, floats(coded)])), [held]);
  const texts = useTexts(about.number), spoken = useWords(about.dictionary);
  const [typed, setTyped] = useState(place.f || "");
  useEffect(() => setTyped(place.f || ""), [place.f]);
  const best = useMemo(() => { const seen = new Set(); return Array.from({ length: held.width }, (_, row) => row).filter(row => !seen.has(columns.latent[row]) && seen.add(columns.latent[row])); }, [columns]);
  const filter = useMemo(() => filterOf(place.f || "", columns), [columns, place.f]);
  const sort = columns[place.sort] ? place.sort : "score", down = place.up !== "1";
  const order = useMemo(() => filter.test ? ordered(columns, held.width, { sort, down, test: filter.test, among: place.all ? null : best }) : [], [columns, filter, sort, down, place.all, best]);
  const kept = useMemo(() => { const mask = new Uint8Array(held.width); for (const row of order) mask[row] = 1; return mask; }, [order]);
  const row = place.r === undefined ? order[0] : Number(place.r);
  const same = row === undefined ? [] : Array.from(columns.latent.keys()).filter(one => columns.latent[one] === columns.latent[row]).sort((a, b) => columns.value[a] - columns.value[b]);
  const words = i => about.dictionary ? said(spoken.of(i)) : "";
  const view = rows => { texts.view(rows); if (about.dictionary) spoken.view(rows.map(one => columns.latent[one])); };
  useEffect(() => texts.view(same), [row]);
  const start = about.prompt === null ? "a text's beginning" : `“${visible(about.prompt)}”`;
  return html`<div class="lead"><p class="kicker">Sweep of ${about.of} <span>on ${about.model}</span></p><h1>What do latents make the model say?</h1>
      <p class="facts"><span><b>${number(best.length)}</b> latents</span><span>continuing <b>${start}</b></span><span>unchanged: <b class="mono">${cut(visible(about.baseline.text || ""), 60)}</b></span>
      ${about.rows < about.wanted && html`<span>unfinished: <b>${number(about.rows)}</b> of ${number(about.wanted)}</span>`}</p></div>
    <div class="filters">
      ${home.sweeps.length > 1 && html`<${Field} label="Sweep"><select value=${about.number} onChange=${event => change({ n: event.target.value, r: "", f: "" }, true)}>${home.sweeps.map(one => html`<option value=${one.number} selected=${one === about}>${one.folder}</option>`)}</select><//>`}
      <${Field} label="Filter"><input class="mono" value=${typed} placeholder="kl>1 perplexity<100" onInput=${event => setTyped(event.target.value)} onChange=${event => change({ f: event.target.value }, true)} /><//>
      <label class="check"><input type="checkbox" checked=${Boolean(place.all)} onChange=${event => change({ all: event.target.checked ? "1" : "" })} /> all values</label>
      <span class="count" role="status">${number(order.length)} of ${number(held.width)}</span></div>
    <${Failed} words=${filter.error} />
    <div class="overview">
      <section aria-label="Table of what latents wrote"><${Grid} label="What latents wrote" height=${620} order=${order} sort=${sort} down=${down} onView=${view} onOpen=${one => change({ r: one })}
        onSort=${name => change({ sort: name, up: sort === name && down ? "1" : "" })}
        columns=${[...["latent"].map(name => ({ name, title: COLUMNS[name][0], help: COLUMNS[name][1], n: true })), { name: "text", title: "what it writes", plain: true, wide: true },
          ...Object.keys(COLUMNS).slice(1).map(name => ({ name, title: COLUMNS[name][0], help: COLUMNS[name][1], n: true }))]}
        cells=${one => [about.dictionary ? html`<${Link} page="latent" state=${{ d: about.dictionary, i: columns.latent[one] }}>${columns.latent[one]}<//>` : columns.latent[one],
          html`<button type="button" class="link" aria-pressed=${String(one === row)} onClick=${() => change({ r: one })}>${visible(texts.of(one) ?? "").trim() || "…"}</button>`, ...Object.keys(COLUMNS).slice(1).map(name => number(columns[name][one]))]} /></section>
      <div class="cloud">${row !== undefined && html`<${Panel} title=${`Latent ${columns.latent[row]}`} help="What the model writes with the latent set to each value.">
          ${words(columns.latent[row]) && html`<p class="soft mono">${words(columns.latent[row])}</p>`}
          ${same.map(one => html`<h3>set to ${number(columns.value[one])} <span class="soft">effect ${number(columns.kl[one])}, perplexity ${number(columns.perplexity[one])}</span></h3><p class="written">${visible(texts.of(one) ?? "…").replace(/↵/g, "↵\n")}</p>`)}
          ${about.dictionary && html`<p class="actions"><${Link} page="latent" state=${{ d: about.dictionary, i: columns.latent[row] }} class="button">Its page<//>
            <${Link} page="steer" state=${{ d: about.dictionary, l: `${columns.latent[row]}:${columns.value[row]}`, how: "set", t: about.prompt }} class="button">Steer<//></p>`}<//>`}
        <section class="panel" aria-label="Effect and coherence"><div class="title"><h2>Effect and coherence</h2><${Help} title="this cloud">Each point is a text: up is a larger effect on the next token, left is text that the unchanged model finds usual.<//></div>
          <p class="axes">effect (up) against perplexity (right)</p><${Scatter} x=${columns.perplexity} y=${columns.kl} names=${["perplexity", "effect"]} shown=${kept} chosen=${row === undefined ? [] : [row]} onOpen=${one => change({ r: one })} height=${300}
            tipOf=${one => { view([one]); return html`<div><b>${columns.latent[one]}</b> set to ${number(columns.value[one])}</div><div>${visible(texts.of(one) ?? "").slice(0, 120)}</div>`; }} /></section></div>
    </div>`;
}
