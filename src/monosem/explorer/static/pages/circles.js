// Names in a circle: where weekdays or months lie in the best plane, and how often another order is as round.
import { html, Failed, Field, number, Panel, percent, Waiting, at, away } from "ui";
import { change, Link } from "place";
import { Progress } from "jobs";
import { said } from "page/dictionary";
import { useComputed, Views } from "page/geometry";

const SIZE = 460, EDGE = 74, EDGE_Y = 26; // the width of the picture; room for the names at its sides
const SEEN = { stream: "In the stream", latents: "In what their latents write" };
const HELP = {
  stream: "The state at the last token of each name, in several texts, less the text's mean over names; in the plane of two of the first five principal components in which the names' order is roundest. Small points are texts, large ones the names' means, joined in their order.",
  latents: "The same, of what only those latents write that fire at these names and hardly elsewhere.",
};

export function Circles({ place, d }) {
  const names = place.n === "months" ? "months" : "weekdays";
  const { value, error, job, cancel, busy, start } = useComputed("circle", { dictionary: d, cycle: names });
  return html`<div class="lead"><h1>Do ${names} lie on a circle?</h1><p class="soft wide">A few points look round in any plane that is chosen for it; so every other order of the names gets the same chance.</p></div>
    <${Views} now="circles" d=${d} />
    <div class="filters"><${Field} label="Names"><select value=${names} onChange=${event => change({ n: event.target.value }, true)}>${["weekdays", "months"].map(one => html`<option value=${one} selected=${one === names}>${one}</option>`)}</select><//>
      ${value === null && html`<button type="button" class="first" disabled=${busy} onClick=${start}>Look</button>`}</div>
    <${Failed} words=${error} /><${Progress} job=${job} cancel=${cancel} />
    ${value === undefined && !job && !error && html`<${Waiting} />`}
    ${value && html`<div class="pair both">${Object.keys(SEEN).filter(seen => value.points.some(one => one.seen === seen)).map(seen => html`<${Seen} found=${value} seen=${seen} />`)}</div>
      ${!value.latents.length && html`<p class="soft">No latent of ${d} fires at these names and hardly elsewhere.</p>`}
      ${value.words.length > 0 && html`<${Panel} title="Latents of these names" help="They fire in at least half of the texts of a name, and at 5 % or fewer of the texts' other tokens."><ul class="plainlist">${value.words.map(row => html`<li><span><${Link} page="latent" state=${{ d, i: row.latent }}>${row.latent}<//> <span class="soft mono">${said(row)}</span></span></li>`)}</ul><//>`}`}`;
}

// the order itself is among all orders, with its mirror; drawn ones do not hold it
function verdict(best, whole, [orders, all]) {
  const others = row => (row.p_best ?? row.p) <= (all ? 2 / orders : 1 / (orders + 1)) * 1.001 ? "no other order" : `${percent(row.p_best ?? row.p)} of all orders`;
  if (best.p_best <= 0.05) return `A circle in their order: ${others(best)} ${others(best).startsWith("no") ? "finds" : "find"} a plane as round.`;
  if (whole.p <= 0.05) return `No plane is rounder than chance, but over all dimensions ${others(whole)} ${others(whole).startsWith("no") ? "is" : "are"} as round.`;
  return `Chance would do as well: ${others(best)} find a plane as round.`;
}

function Seen({ found, seen }) {
  const rows = found.table.filter(row => row.seen === seen), points = found.points.filter(one => one.seen === seen);
  const whole = rows.find(row => row.space === "all"), planes = rows.filter(row => row !== whole).sort((a, b) => b.circularity - a.circularity);
  const [xs, ys] = [points.map(one => one.x), points.map(one => one.y)], left = Math.min(...xs), top = Math.max(...ys);
  const scale = (SIZE - 2 * EDGE) / Math.max(Math.max(...xs) - left, (top - Math.min(...ys)) * 0.9, 1e-9), height = Math.ceil((top - Math.min(...ys)) * scale + 2 * EDGE_Y);
  const shift = (SIZE - 2 * EDGE - (Math.max(...xs) - left) * scale) / 2;
  const px = x => EDGE + shift + (x - left) * scale, py = y => EDGE_Y + (top - y) * scale;
  const means = found.names.map(name => { const own = points.filter(one => one.name === name); return [own.reduce((s, one) => s + one.x, 0) / own.length, own.reduce((s, one) => s + one.y, 0) / own.length]; });
  const hue = k => `hsl(${Math.round((360 * k) / found.names.length)} 60% 50%)`;
  return html`<${Panel} title=${SEEN[seen]} help=${HELP[seen]}>
    <p><b>${verdict(planes[0], whole, found.orders)}</b></p>
    <svg class="circle" viewBox="0 0 ${SIZE} ${height}" role="img" aria-label="${found.names.length} names in principal components ${planes[0].space}">
      ${points.map(one => html`<circle cx=${px(one.x)} cy=${py(one.y)} r="2.4" fill=${hue(found.names.indexOf(one.name))} opacity="0.55" onMouseMove=${event => at(event, html`${one.template} <b>${one.name}</b>`)} onMouseLeave=${away} />`)}
      <polygon points=${means.map(([x, y]) => `${px(x)},${py(y)}`).join(" ")} />
      ${means.map(([x, y], k) => { const far = Math.hypot(x, y) || 1; return html`<circle cx=${px(x)} cy=${py(y)} r="6" fill=${hue(k)} /><text x=${px(x) + (x / far) * 14} y=${py(y) - (y / far) * 14 + 4} text-anchor=${x < -0.3 * far ? "end" : x > 0.3 * far ? "start" : "middle"}>${found.names[k]}</text>`; })}
    </svg>
    <div class="scrolls" tabindex="0" role="region" aria-label=${`Planes, ${SEEN[seen].toLowerCase()}`}><table><thead><tr><th scope="col">components</th><th scope="col" class="n">of the variance</th><th scope="col" class="n">circularity</th><th scope="col" class="n">p</th><th scope="col" class="n">p, best plane</th></tr></thead>
      <tbody>${[whole, ...planes.slice(0, 3)].map(row => html`<tr><th scope="row">${row.space}</th><td class="n">${percent(row.variance)}</td><td class="n">${number(row.circularity)}</td><td class="n">${number(row.p, 2)}</td><td class="n">${number(row.p_best, 2)}</td></tr>`)}</tbody></table></div>
    <p class="soft">Circularity is 1 for a circle and 0 for a line. p: how often ${found.orders[1] ? `one of the ${number(found.orders[0])} orders` : `one of ${number(found.orders[0])} drawn orders`} has at least as much.</p><//>`;
}
