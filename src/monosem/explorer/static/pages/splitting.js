// The family tree of latents: narrow dictionaries on the left, what their latents become in wider ones on the right.
import { html, Failed, number, Panel, percent, Waiting, useEffect, useMemo } from "ui";
import { floats } from "server";
import { change, Link } from "place";
import { Progress } from "jobs";
import { said, useWords } from "page/dictionary";
import { useComputed, Views } from "page/geometry";

const NARROW = matchMedia("(max-width: 720px)").matches;
const ROW = 30, MOST = 60; // pixels a latent; latents that are drawn
// pixels a dictionary: columns share the page, down to what a few words need
const columnOf = count => (NARROW ? 205 : Math.round(Math.min(Math.max((Math.min(innerWidth, 1320) - 110) / count, 330), 520)));
const wordsIn = column => (NARROW ? 9 : Math.floor((column - 152) / 7.3)); // characters

// {parents, children}: of [which dictionary, number] as "k i"
export function familyOf(found) {
  const parents = new Map(), children = new Map();
  found.names.forEach((name, k) => {
    if (!k) return;
    const up = floats(found.parents[name]), cosines = floats(found.cosines[name]);
    for (let i = 0; i < up.length; i++) if (up[i] >= 0) {
      const own = `${k} ${i}`, above = `${k - 1} ${up[i]}`;
      parents.set(own, { above, cosine: cosines[i] });
      if (!children.has(above)) children.set(above, []);
      children.get(above).push(own);
    }
  });
  for (const some of children.values()) some.sort((a, b) => parents.get(b).cosine - parents.get(a).cosine);
  return { parents, children };
}

export function rootOf({ parents }, place) {
  while (parents.has(place)) place = parents.get(place).above;
  return place;
}

function size({ children }, place) {
  return (children.get(place) || []).reduce((sum, one) => sum + 1 + size({ children }, one), 0);
}

// rows of the picture: every latent at its column; a parent stands at its first child
function laid({ children }, root) {
  const nodes = [];
  let row = 0;
  const walk = (place, above) => {
    if (nodes.length >= MOST) return;
    const own = { place, above, row }; nodes.push(own);
    const below = children.get(place) || [];
    below.forEach((child, i) => { if (i) row += 1; walk(child, own); });
  };
  walk(root, null);
  return { nodes, rows: row + 1 };
}

export function Splitting({ place, d, home }) {
  const usable = home.dictionaries.filter(one => !one.error), about = usable.find(one => one.name === d);
  const site = one => `${one.place} ${one.model}`;
  const names = about ? usable.filter(one => site(one) === site(about) && !one.meta_of).sort((a, b) => a.width - b.width).map(one => one.name).slice(0, 8) : [];
  const threshold = Math.min(Math.max(Number(place.t) || 0.7, 0.05), 1);
  const { value, error, job, cancel, start } = useComputed(names.length > 1 ? "families" : null, { dictionaries: names, threshold });
  useEffect(() => { if (value === null && !job) start(); }, [value]);
  const family = useMemo(() => value && familyOf(value), [value]);
  const largest = useMemo(() => {
    if (!family) return [];
    const roots = new Set([...family.children.keys()].map(one => rootOf(family, one)));
    return [...roots].map(one => [one, size(family, one)]).sort((a, b) => b[1] - a[1]).slice(0, 24);
  }, [family]);
  const k = value ? value.names.indexOf(d) : 0;
  const asked = place.i !== undefined ? `${k} ${Number(place.i)}` : largest.length ? largest[0][0] : `${k} 0`;
  return html`<div class="lead"><h1>Families</h1><p class="soft wide">A latent of a narrow dictionary often comes back as several narrower ones in a wider dictionary of the same place.</p></div>
    <${Views} now="splitting" d=${d} />
    ${names.length < 2 ? html`<p class="soft wide">There is one dictionary at this place. Name another one of a different width: <code>monosem explore NARROW WIDE</code>.</p>`
      : error ? html`<${Failed} words=${error} />` : !value ? html`<${Progress} job=${job} cancel=${cancel} />${!job && html`<${Waiting} words="looking for families" />`}`
      : html`<${Tree} found=${value} family=${family} asked=${asked} />
    <div class="pair both"><${Panel} title="Large families" help="Latents with the most descendants.">
      <${Roots} found=${value} largest=${largest} /><//>
      <${Panel} title="How many have a parent" help="A latent's parent is the latent of the next narrower dictionary with the nearest decoder row, if their cosine reaches the threshold. Chance: random rows with the mean and covariance of the wider dictionary's rows.">
      <label class="field"><span>cosine of a parent, at least</span><input type="number" min="0.05" max="1" step="0.05" value=${threshold} onChange=${event => change({ t: event.target.value }, true)} /></label>
      ${value.shares.map(row => html`<h3>${row.dictionary} <span class="soft">from ${row.narrower}</span></h3><dl><div><dt>have a parent</dt><dd>${percent(row.share)} (${percent(row.low)} to ${percent(row.high)})</dd></div>
        <div><dt>of random rows</dt><dd>${percent(row.null_share)}; 99 % are below ${number(row.null_99)}</dd></div><div><dt>latents that split</dt><dd>${number(row.split)}</dd></div><div><dt>latents without a child</dt><dd>${number(row.childless)}</dd></div></dl>`)}<//></div>`}`;
}

function useNames(found, places) {
  const spoken = found.names.map(name => useWords(name));
  useEffect(() => { found.names.forEach((_, k) => spoken[k].view(places.filter(one => Number(one.split(" ")[0]) === k).map(one => Number(one.split(" ")[1])))); }, [places.join()]);
  return one => { const [k, i] = one.split(" ").map(Number); return said(spoken[k].of(i)) || ""; };
}

function Tree({ found, family, asked }) {
  const { nodes, rows } = useMemo(() => laid(family, rootOf(family, asked)), [family, asked]);
  const words = useNames(found, nodes.map(one => one.place)), column = columnOf(found.names.length), most = wordsIn(column);
  const at = one => { const k = Number(one.place.split(" ")[0]); return [14 + k * column, 44 + one.row * ROW]; };
  const width = found.names.length * column + 20, height = rows * ROW + 34, of = one => Number(one.place.split(" ")[1]);
  return html`<${Panel} title="The family of ${asked.split(" ")[1]}" help="Each line goes from a parent to a child; the number is the cosine of their decoder rows. Click a latent to open it.">
    <div class="scrolls" tabindex="0" role="region" aria-label="Family tree"><svg class="family" width=${width} height=${height} viewBox="0 0 ${width} ${height}" role="group" aria-label="Family tree">
      ${found.names.map((name, k) => html`<text class="wide-of" x=${8 + k * column} y="18">${short(name, NARROW ? 18 : 40)} · ${number(found.widths[k])}</text>`)}
      ${nodes.filter(one => one.above).map(one => { const [x, y] = at(one), [px, py] = at(one.above), start = px + 14 + 8.2 * String(of(one.above)).length + 7.3 * short(words(one.above.place), most).length;
        return html`<path d=${`M${start} ${py}C${(start + x) / 2} ${py} ${(start + x) / 2} ${y} ${x - 12} ${y}`} /><text class="cosine" x=${x - 16} y=${y - 5} text-anchor="end">${number(family.parents.get(one.place).cosine, 2)}</text>`; })}
      ${nodes.map(one => { const [x, y] = at(one); return html`<g class=${one.place === asked ? "asked" : ""}><circle cx=${x - 5} cy=${y} r="4" />
        <${Link} page="latent" state=${{ d: found.names[Number(one.place.split(" ")[0])], i: of(one) }}><text x=${x + 5} y=${y + 4}>${of(one)} <tspan class="soft">${short(words(one.place), most)}</tspan></text><//></g>`; })}
    </svg></div>
    ${nodes.length === 1 && html`<p class="soft">It has neither parent nor children at this threshold.</p>`}${nodes.length >= MOST && html`<p class="soft">The first ${MOST} are drawn.</p>`}<//>`;
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function Roots({ found, largest }) {
  const words = useNames(found, largest.map(([one]) => one));
  if (!largest.length) return html`<p class="soft">No latent has a child at this threshold.</p>`;
  const splits = largest[0][1] > 1;
  return html`${!splits && html`<p class="soft">No latent splits: each has one child at most. Some pairs:</p>`}<ul class="plainlist">${largest.slice(0, splits ? largest.length : 6).map(([one, count]) => { const [k, i] = one.split(" ").map(Number); return html`<li><span><${Link} page="splitting" state=${{ d: found.names[k], i }}>${i}<//> <span class="soft">of ${found.names[k]}, ${count} below</span> <span class="soft mono">${words(one)}</span></span></li>`; })}</ul>`;
}
