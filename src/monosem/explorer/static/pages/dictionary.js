// All latents of a dictionary: a filter, a cloud of points, a table of any length.
import { html, number, percent, Failed, Field, Help, Waiting, useEffect, useMemo, useRef, useState } from "ui";
import { floats, forgets, get, useData } from "server";
import { Making, Which } from "making";
import { change, go, Link } from "place";
import { Grid } from "grid";
import { Scatter } from "scatter";
import { quoted } from "tokens";
import { Star } from "notes";

const COLUMNS = {
  density: ["density", "share of counted tokens at which it is active", percent],
  maximum: ["maximum", "its largest activation", number],
  mean: ["mean", "of its activations where it is active", number],
  kurtosis: ["kurtosis", "of its activations where it is active; 3 for a normal distribution", number],
  cosine: ["enc · dec", "cosine of its encoder and decoder rows", number],
  decoder_norm: ["norm", "length of its decoder row", number],
  bias: ["bias", "of its encoder", number],
};
const MORE = {
  latent: "number", explained: "explained", log10_density: "log₁₀ density", sd: "sd", skew: "skew", count: "count", encoder_norm: "encoder norm", threshold: "threshold",
  decoder_bias: "decoder row · bias", logit_sd: "logit sd", logit_skew: "logit skew", logit_kurtosis: "logit kurtosis",
};
export const nameOf = column => (COLUMNS[column] ? COLUMNS[column][0] : MORE[column] || column);

export function useTable(d) {
  const held = useData("table", { d });
  const value = held.old ? null : held.value;
  return useMemo(() => {
    if (!value) return { error: held.error };
    const columns = { latent: Float32Array.from({ length: value.width }, (_, i) => i) };
    for (const [name, coded] of Object.entries(value.columns)) columns[name] = floats(coded);
    return { width: value.width, columns, indexed: value.indexed };
  }, [value, held.error]);
}

// "density>0.01 kurtosis<5": terms that all must hold
const TERM = /^([a-z0-9_]+)(<=|>=|=|<|>)(-?[\d.]+(?:e-?\d+)?%?)$/i;
export function filterOf(text, columns) {
  const tests = [];
  for (const term of text.trim().split(/\s+(?:and\s+)?/).filter(Boolean)) {
    const found = TERM.exec(term);
    if (!found || !columns[found[1]]) return { error: `cannot read “${term}”: write column>number, such as density>0.001; columns: ${Object.keys(columns).join(", ")}` };
    const values = columns[found[1]], limit = found[3].endsWith("%") ? parseFloat(found[3]) / 100 : Number(found[3]);
    const holds = { "<": v => v < limit, ">": v => v > limit, "<=": v => v <= limit, ">=": v => v >= limit, "=": v => v === limit }[found[2]];
    tests.push(i => holds(values[i]));
  }
  return { test: i => tests.every(test => test(i)) };
}

export function ordered(columns, width, { sort, down, test, among }) {
  const kept = among ? among.filter(test) : Array.from({ length: width }, (_, i) => i).filter(test);
  const values = columns[sort];
  if (!values) return kept;
  const sign = down ? -1 : 1;
  return kept.sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    return Number.isNaN(x) ? (Number.isNaN(y) ? a - b : 1) : Number.isNaN(y) ? -1 : sign * (x - y) || a - b;
  });
}

// decoder rows of length 1 need no column of their own
const varies = values => { let low = Infinity, high = -Infinity; for (const value of values) if (Number.isFinite(value)) { if (value < low) low = value; if (value > high) high = value; } return !(high - low < 0.01 * Math.abs(high)); };
// latents with a label stand first until one sorts: they say what a latent is
const first = (explained, order) => explained ? [...order.filter(i => explained[i]), ...order.filter(i => !explained[i])] : order;

export const last = { d: null, order: null }; // what j and k go through

const words = new Map();
forgets.push(() => words.clear());
export function useWords(d) {
  const [, again] = useState(0);
  const wanted = useRef(null);
  const view = numbers => {
    clearTimeout(wanted.current);
    const missing = numbers.filter(i => !words.has(`${d}#${i}`)).slice(0, 200);
    if (!missing.length) return;
    wanted.current = setTimeout(() => get("rows", { d, i: missing.join(",") }).then(rows => {
      for (const row of rows) words.set(`${d}#${row.latent}`, row);
      again(n => n + 1);
    }, () => {}), 60);
  };
  useEffect(() => () => clearTimeout(wanted.current), []);
  return { view, of: i => words.get(`${d}#${i}`) };
}
export const said = row => row && (row.label || (row.fires_on || []).map(quoted).join(" "));

export function DictionaryPage({ place, d, home }) {
  const table = useTable(d), about = home.dictionaries.find(one => one.name === d);
  const found = useData(place.q ? "search" : null, { d, q: place.q });
  const spoken = useWords(d);
  const [typed, setTyped] = useState(place.f || "");
  useEffect(() => setTyped(place.f || ""), [place.f, d]);
  const columns = table.columns;
  const shownColumns = useMemo(() => columns ? Object.keys(COLUMNS).filter(name => columns[name] && varies(columns[name])) : [], [columns]);
  const usual = columns?.density ? "density" : "latent", sort = place.sort || (place.q || columns?.explained ? "" : usual), down = place.up ? place.up === "0" : (sort || usual) !== "latent";
  const filter = useMemo(() => columns ? filterOf(place.f || "", columns) : {}, [columns, place.f]);
  const hits = place.q && !found.old ? found.value : null;
  const order = useMemo(() => columns && filter.test
    ? first(place.sort || place.q ? null : columns.explained, ordered(columns, table.width, { sort: sort || (place.q ? "" : usual), down, test: filter.test, among: place.q ? (hits || []).map(hit => hit.latent) : null })) : [],
    [columns, filter, sort, down, hits, place.q, place.sort]);
  const kept = useMemo(() => { const mask = new Uint8Array(table.width || 0); for (const i of order) mask[i] = 1; return mask; }, [order, table.width]);
  if (table.error) return html`<${Failed} words=${table.error} />`;
  if (!columns) return html`<${Waiting} words="reading the latents" />`;
  last.d = d; last.order = order;
  const names = Object.keys(columns), x = columns[place.x] ? place.x : columns.log10_density ? "log10_density" : "cosine";
  const y = columns[place.y] ? place.y : columns.maximum ? "maximum" : shownColumns.includes("decoder_norm") ? "decoder_norm" : "bias";
  const matched = new Map((hits || []).map(hit => [hit.latent, hit.matched]));
  const open = i => go("latent", { d, i });
  const choose = (name, value) => html`<select aria-label=${`${name} axis`} value=${value} onChange=${event => change({ [name]: event.target.value })}>
    ${names.map(one => html`<option value=${one} selected=${one === value}>${nameOf(one)}</option>`)}</select>`;
  return html`<div class="lead"><p class="kicker">${about.kind} at ${about.site}${about.model ? ` of ${about.model}` : ""}</p><h1>${d}</h1>
      <p class="facts"><span><b>${number(table.width)}</b> latents</span>
      ${about.tokens ? html`<span><b>${number(about.dead)}</b> never fired in <b>${number(about.tokens)}</b> tokens</span>${columns.explained && html`<span><b>${number(about.labels)}</b> explained, listed first</span>`}`
        : html`<span>On which text they fire is known once a text was read.</span>`}</p>
      <${Which} about=${about} /><${Failed} words=${about.index_error} /></div>
    ${!table.indexed && html`<${Making} d=${d} home=${home} panel />`}
    <div class="filters">
      ${table.indexed && html`<${Field} label="Words"><input type="search" value=${place.q || ""} placeholder="what it fires on" onChange=${event => change({ q: event.target.value, sort: "" }, true)} /><//>`}
      <${Field} label="Filter"><input class="mono" value=${typed} placeholder=${table.indexed ? "density>0.1% kurtosis<5" : "cosine<0.5 bias>0"} onInput=${event => setTyped(event.target.value)} onChange=${event => change({ f: event.target.value }, true)} /><//>
      <span class="count" role="status">${number(order.length)} of ${number(table.width)}</span>
    </div>
    <${Failed} words=${filter.error || found.error} />
    <div class="overview">
      <section aria-label="Table of latents"><${Grid} label="Latents" height=${620} order=${order} sort=${sort} down=${down} onView=${spoken.view} onOpen=${open}
        onSort=${name => change({ sort: name, up: sort !== name ? "" : down ? "1" : "0" })}
        columns=${[{ name: "star", title: html`<span class="sr">star</span>`, plain: true }, { name: "latent", title: "latent", help: "its number", n: true },
          table.indexed && { name: "words", title: place.q ? "found" : columns.explained ? "label, or what it fires on" : "fires on", plain: true, wide: true }, ...shownColumns.map(name => ({ name, title: COLUMNS[name][0], help: COLUMNS[name][1], n: true }))].filter(Boolean)}
        cells=${i => [html`<${Star} d=${d} i=${i} />`, html`<${Link} page="latent" state=${{ d, i }}>${i}<//>`,
          table.indexed && html`<span class=${spoken.of(i)?.label ? "" : "mono"} title=${said(spoken.of(i))}>${matched.get(i) ? `${matched.get(i)} · ` : ""}${said(spoken.of(i)) || ""}</span>`, ...shownColumns.map(name => COLUMNS[name][2](columns[name][i]))].filter(cell => cell !== false)} /></section>
      <section class="panel cloud" aria-label="Latents as points"><div class="title"><h2>Cloud</h2><${Help} title="the cloud">Each point is a latent; those that the filter leaves out are faint. Hover to read, click to open.<//></div>
        <div class="axes">${choose("y", y)} against ${choose("x", x)}</div>
        <${Scatter} x=${columns[x]} y=${columns[y]} names=${[nameOf(x), nameOf(y)]} shown=${kept} onOpen=${open} height=${460}
          tipOf=${i => { spoken.view([i]); return html`<div><b>${i}</b> <span class="mono">${said(spoken.of(i))}</span></div><div>${nameOf(x)} ${number(columns[x][i])}, ${nameOf(y)} ${number(columns[y][i])}</div>`; }} /></section>
    </div>`;
}
