// All latents on a plane: similar decoder rows lie together.
import { html, Failed, Field, number, Panel, Waiting, useEffect, useMemo, useState } from "ui";
import { change, go, Link } from "place";
import { floats, useData } from "server";
import { Scatter } from "scatter";
import { keep } from "notes";
import { Progress } from "jobs";
import { nameOf, said, useTable, useWords } from "page/dictionary";
import { useComputed, Views } from "page/geometry";

const METHODS = { "": "principal components", pca: "principal components, clusters", umap: "UMAP, clusters" };
const NONE = "rgb(138 147 160 / 0.55)";
const OF = ["hsl(215 62% 52%)", "hsl(25 75% 52%)"]; // the colours of two dictionaries
const hue = k => `hsl(${Math.round(k * 137.508) % 360} 62% 52%)`; // neighbours in number differ in colour

// each value's share of the others that lie below it: colours by rank, so that one wild latent does not take them all
export function ranks(values) {
  const order = Array.from(values.keys()).filter(i => Number.isFinite(values[i])).sort((a, b) => values[a] - values[b]);
  const out = new Float32Array(values.length).fill(NaN);
  order.forEach((i, place) => { out[i] = order.length > 1 ? place / (order.length - 1) : 0.5; });
  return out;
}

// {x, y, cluster, names, widths}: the quick map of one dictionary, or one that a job lays out
function usePlaces(d, method, beside) {
  const quick = useData(method ? null : "map", { d });
  const names = beside ? [d, beside] : [d];
  const made = useComputed(method ? "map" : null, { dictionaries: names, method: method || "pca" });
  const value = method ? made.value : quick.old ? null : quick.value;
  const places = useMemo(() => {
    if (!value) return null;
    if (method) return { x: floats(value.x), y: floats(value.y), cluster: floats(value.cluster), names, widths: value.widths };
    const flat = floats(value.places), x = flat.filter((_, i) => i % 2 === 0);
    return { x, y: flat.filter((_, i) => i % 2 === 1), names, widths: [x.length] };
  }, [value]);
  return { places, made, error: method ? made.error : quick.error };
}

export function MapPage({ place, d, home }) {
  const method = place.m in METHODS ? place.m : place.w ? "pca" : "", beside = method && place.w !== d ? place.w || "" : "";
  const { places, made, error } = usePlaces(d, method, beside);
  const table = useTable(d), spoken = useWords(d), other = useWords(beside || d);
  const own = home.dictionaries.find(one => one.name === d), rest = home.dictionaries.filter(one => !one.error && one.model === own?.model && one.name !== d);
  const by = choice(place.by, places, table.columns, beside);
  const color = useMemo(() => places && table.columns && colours(by, places, table.columns), [places, table.columns, by]);
  const chosen = (place.c || "").split(",").filter(one => /^\d+$/.test(one)).map(Number).filter(i => i < (places?.x.length || 0));
  const at = i => { const k = places && i >= places.widths[0] ? 1 : 0; return { k, d: places?.names[k] || d, i: k ? i - places.widths[0] : i }; };
  const words = i => { const one = at(i); return said((one.k ? other : spoken).of(one.i)); };
  const view = some => { for (const k of [0, 1]) (k ? other : spoken).view(some.map(at).filter(one => one.k === k).map(one => one.i)); };
  const options = [...(places?.cluster ? ["cluster"] : []), ...(beside ? ["dictionary"] : []), ...Object.keys(table.columns || {})];
  return html`<div class="lead"><h1>Map</h1><p class="soft wide">Latents whose decoder rows point in similar directions lie together. Draw around some to make a list of them.</p></div>
    <${Views} now="map" d=${d} />
    <div class="filters"><${Field} label="Layout"><select value=${method} onChange=${event => change({ m: event.target.value, c: "", by: "" }, true)}>${Object.entries(METHODS).map(([name, title]) => html`<option value=${name} selected=${name === method}>${title}</option>`)}</select><//>
      ${rest.length > 0 && html`<${Field} label="Together with"><select value=${beside} onChange=${event => change({ w: event.target.value, m: method || "pca", c: "", by: "" }, true)}><option value="">no other dictionary</option>${rest.map(one => html`<option value=${one.name} selected=${one.name === beside}>${one.name}</option>`)}</select><//>`}
      ${method && made.value === null && html`<button type="button" class="first" disabled=${made.busy} onClick=${made.start}>Lay it out</button>`}</div>
    <${Failed} words=${error || table.error} />${method && html`<${Progress} job=${made.job} cancel=${made.cancel} />`}
    ${!places || !table.columns ? !error && !table.error && !made.job && !(method && made.value === null) && html`<${Waiting} words="laying out the map" />` : html`<div class="overview"><${Panel} title="Decoder rows" help=${method === "umap"
      ? "UMAP keeps rows near that point in similar directions; how far apart two groups lie, and how large they look, says nothing." : "The first two principal components of the decoder rows, each of length 1: a shadow of a space of hundreds of dimensions, in which near points may still be far apart."}>
      <p class="axes">coloured by ${by === "cluster" || by === "dictionary" ? "" : "rank of "}<select aria-label="Colour" value=${by} onChange=${event => change({ by: event.target.value })}>${options.map(one => html`<option value=${one} selected=${one === by}>${nameOf(one)}</option>`)}</select>
        ${by === "dictionary" ? places.names.map((name, k) => html`<span><span aria-hidden="true" style=${{ color: OF[k] }}>●</span> ${name}</span>`) : by !== "cluster" && html`<span>low</span><span class="ramp" aria-hidden="true"></span><span>high</span>`}</p>
      <${Scatter} plain x=${places.x} y=${places.y} names=${["the first", "the second direction of the map"]} color=${color} chosen=${chosen} height=${600} onOpen=${i => go("latent", { d: at(i).d, i: at(i).i })}
        onLasso=${found => change({ c: found.slice(0, 400).join(",") }, true)}
        tipOf=${i => { view([i]); const one = at(i); return html`<div><b>${one.i}</b> ${beside && html`<span class="soft">${one.d}</span>`} <span class="mono">${words(i)}</span></div>${places.cluster && html`<div class="soft">${places.cluster[i] < 0 ? "in no cluster" : `cluster ${places.cluster[i]}`}</div>`}${!one.k && table.columns[by] && html`<div class="soft">${nameOf(by)} ${number(table.columns[by][one.i])}</div>`}`; }} /><//>
    <div><${Choice} d=${d} chosen=${chosen} at=${at} words=${words} view=${view} />${places.cluster && html`<${Clusters} places=${places} words=${words} view=${view} />`}</div></div>`}`;
}

function choice(by, places, columns, beside) {
  if ((by === "cluster" && places?.cluster) || (by === "dictionary" && beside) || columns?.[by]) return by;
  return beside ? "dictionary" : places?.cluster ? "cluster" : columns?.density ? "density" : "decoder_norm";
}

function colours(by, places, columns) {
  if (by === "cluster") return Array.from(places.cluster, k => (k < 0 ? NONE : hue(k)));
  if (by === "dictionary") return Array.from(places.x, (_, i) => OF[i < places.widths[0] ? 0 : 1]);
  const own = ranks(columns[by]);
  if (places.widths.length < 2) return own;
  return Float32Array.from(places.x, (_, i) => (i < own.length ? own[i] : NaN));
}

function Choice({ d, chosen, at, words, view }) {
  const [name, setName] = useState("");
  useEffect(() => view(chosen.slice(0, 60)), [chosen.join()]);
  const save = event => { event.preventDefault(); if (name.trim()) { keep({ put: [name.trim(), chosen.map(i => [at(i).d, at(i).i])] }); go("lists", { d }); } };
  return html`<${Panel} title=${chosen.length ? `${chosen.length} chosen` : "Nothing chosen"} help="Latents inside the line that you drew, or of a cluster; keep them as a list.">
    ${!chosen.length ? html`<p class="soft">Press on an empty place and draw a line around some points.</p>` : html`<ul class="plainlist">${chosen.slice(0, 60).map(i => html`<li><span><${Link} page="latent" state=${{ d: at(i).d, i: at(i).i }}>${at(i).i}<//> <span class="soft mono">${words(i)}</span></span></li>`)}</ul>
    <form class="row" onSubmit=${save}><input aria-label="Name of the list" placeholder="name of the list" maxlength="200" value=${name} onInput=${event => setName(event.target.value)} /><button type="submit">Keep as a list</button></form>`}<//>`;
}

function Clusters({ places, words, view }) {
  const groups = useMemo(() => {
    const found = new Map();
    places.cluster.forEach((k, i) => { if (k >= 0) { if (!found.has(k)) found.set(k, []); found.get(k).push(i); } });
    return [...found.entries()].sort((a, b) => a[0] - b[0]);
  }, [places]);
  const shown = groups.slice(0, 40), inside = groups.reduce((sum, [, some]) => sum + some.length, 0);
  useEffect(() => view(shown.map(([, some]) => some[0])), [places]);
  return html`<${Panel} title=${`${groups.length} clusters`} help="HDBSCAN's clusters in ten dimensions of the same layout, the largest first. It finds as many in random rows with the same covariance: a way to look, and no evidence.">
    <p class="soft">${number(inside)} of ${number(places.x.length)} latents are in one.</p>
    <ul class="plainlist clusters">${shown.map(([k, some]) => html`<li><button type="button" class="plain" onClick=${() => change({ c: some.slice(0, 400).join(",") }, true)}><span aria-hidden="true" style=${{ color: hue(k) }}>●</span> ${some.length} latents</button> <span class="soft mono">${words(some[0])}</span></li>`)}</ul><//>`;
}
