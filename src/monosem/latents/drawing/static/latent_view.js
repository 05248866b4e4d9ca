// A latent, from the data of `LatentPage`: the same in the app, in a notebook and in an exported file.
import { html, render, useState, number, percent, Panel, Tip } from "ui";
import { anySign, hovered, quoted, sign, Tokens } from "tokens";
import { Histogram } from "charts";

const HELP = {
  examples: "Pieces of text in which the latent fires most; the stronger a token's colour, the stronger the activation.",
  intervals: "Its activations cut into parts of equal width: what holds at the top may not hold further down.",
  logits: "What its decoder row adds to the next token's logits directly, per unit of activation; what later layers make of it is not in it.",
  histogram: "How strong it is where it is active, from its threshold to its maximum; the higher a bar, the more tokens.",
  tokens: "The tokens at which it fires: how often, and its activations there in sum; the largest sum comes first.",
  statistics: "How often and how strongly it fires over all counted tokens; kurtosis is 3 for a normal distribution. Not counted are tokens that the dictionary was not trained on.",
  older: "What newer indexes hold beside this.",
  neighbours: "Latents whose decoder rows point in almost the same direction: often parts of one concept.",
  geometry: "What the weights say: lengths of its encoder and decoder rows, the angle between them, its bias.",
  neurons: "The largest entries of its decoder row; they are neurons only where the site has neurons.",
  heads: "How much of its decoder row lies in each attention head.",
  deciles: "Its active tokens in ten parts of equal number, the strongest first, with examples drawn from each.",
  uniform: "Drawn from all tokens at which it is active alike: what it usually fires on.",
  near: "Tokens at which it almost fires: silent, with the highest values before the threshold.",
  silent: "Places drawn from the whole corpus around which it does not fire.",
  coactive: "Latents that are active at the same tokens, counted over the whole corpus: both of either, and how much of this one's tokens.",
  enrichment: "Kinds of tokens that it fires on more often than their share of the corpus.",
  patterns: "The tokens before its firings, and pairs of tokens it fires on; times its share says how much more often than in the corpus.",
  set_effects: "Kinds of tokens that its decoder row raises (or lowers) as a whole: 1 is all of them above every other token, −1 below.",
  correlated: "Dimensions of the site whose activations go up and down with the latent's, as the file says.",
  unreliable: "What the tool that wrote these numbers is known to get wrong, or to leave out.",
  provenance: "The model, dictionary and text that all of this was computed from.",
};

export function headline(page) {
  if (page.explanation) return page.explanation.label;
  const words = (page.tokens?.map(one => one.token) || strongest(page.examples)).slice(0, 4).map(quoted);
  return words.length ? `fires on ${words.join("  ")}` : page.statistics?.dead ? "never fires" : `latent ${page.latent}`;
}

// the tokens at which examples are strongest, for pages that do not count tokens
const strongest = examples => [...new Set((examples || []).map(one => one.tokens[one.anchor]).filter(text => text?.trim()))];

export function LatentView({ page, link, below, aside, actions, effect, making }) {
  const s = page.statistics, maximum = s ? s.maximum : null;
  return html`<article class="latent">
    <header class="lead">
      <p class="kicker">Latent ${page.latent} <span>of ${page.dictionary}</span></p>
      <h1>${headline(page)}</h1>
      ${page.explanation && html`<p class="soft">${page.explanation.fires ? `held-out score ${number(page.explanation.score)}: the label finds
        ${page.explanation.fires} texts on which it fires, and leaves out ${page.explanation.quiet} others`
        : [`label by ${page.explanation.by || "nobody named"}`, ...Object.entries(page.explanation.scores || {}).map(([name, value]) => `${name} ${number(value)}`)].join(", ")}</p>`}
      ${s && html`<p class="facts"><span>on <b>${percent(s.density)}</b> of tokens</span>
        <span>largest activation <b>${number(s.maximum)}</b></span><span><b>${number(s.count)}</b> times${s.tokens ? ` in ${number(s.tokens)} tokens` : ""}</span></p>`}
      ${actions}
    </header>
    <div class="columns">
      <div class="main">
        ${below}
        <${Unreliable} remarks=${page.unreliable} />
        <${Examples} page=${page} maximum=${maximum} effect=${effect} making=${making} />
      </div>
      <div class="side">
        <${Logits} page=${page} actions=${actions} />
        <${Activations} page=${page} />
        <${FiresOn} page=${page} />
      </div>
      <div class="more">
        <${Neighbours} page=${page} link=${link} />
        ${aside}
        <${Together} page=${page} link=${link} />
        <${Patterns} page=${page} />
        <${Sets} page=${page} />
        <${SetEffects} page=${page} />
        <${Correlated} page=${page} />
        <${Older} page=${page} making=${making} />
        <${Facts} page=${page} />
      </div>
    </div>
  </article>`;
}

// whether a part is not there because no corpus was read
const unread = (page, part) => page.missing[part]?.startsWith("needs an index");

// key of the page -> [title, whether it is parts of examples with a range each]
const KINDS = { examples: ["Strongest", false], intervals: ["By strength", true], deciles: ["Tenths", true], uniform: ["Drawn alike", false], near: ["Almost", false], silent: ["Silent", false] };

function Examples({ page, maximum, effect, making }) {
  const [kind, setKind] = useState("examples");
  const there = Object.keys(KINDS).filter(name => page[name]?.length);
  return html`<${Panel} title="Examples" name="examples" help=${HELP[kind]}
      missing=${unread(page, "examples") ? (making ? "On which text it fires is known once a text was read." : `On which text it fires is known once a corpus was read: \`monosem latents index ${page.dictionary} --text PATH\``) : page.missing.examples} more=${unread(page, "examples") && making}>
    ${page.examples && html`<div class="tabs" role="group" aria-label="Which examples">${there.map(name => html`<button type="button"
        aria-pressed=${String(kind === name)} onClick=${() => setKind(name)}>${KINDS[name][0]}</button>`)}</div>
      ${!KINDS[kind][1] ? html`<${List} examples=${page[kind]} maximum=${maximum} effect=${effect} />`
        : page[kind].map(band => html`<h3>${number(band.low)} to ${number(band.high)}
          <span class="soft">${percent(band.share)} of its active tokens</span></h3>
          <${List} examples=${band.examples} maximum=${maximum} effect=${effect} />`)}`}
  <//>`;
}

function List({ examples, maximum, effect }) {
  const signed = anySign(examples.map(one => one.activations));
  if (!examples.length) return html`<p class="soft">no example was kept</p>`;
  return html`<ol class="examples">${examples.map(one => html`<li>
    <span class="value">${one.preactivation !== undefined ? number(one.preactivation) : one.maximum === null ? "–" : Math.abs(one.maximum) < 1000 ? one.maximum.toFixed(1).replace("-", "−") : number(one.maximum)}</span>
    <span class="text"><${Tokens} tokens=${one.tokens} activations=${one.activations} maximum=${maximum} signed=${signed} anchor=${one.anchor} />
      <span class="below"><span class="source" title=${one.document}>${one.document}</span>${effect && one.ids && effect(one)}</span></span>
  </li>`)}</ol>`;
}

function Unreliable({ remarks }) {
  return remarks?.length > 0 && html`<${Panel} title="Not to rely on" name="unreliable" help=${HELP.unreliable}><details><summary>${remarks.length} things to know about these numbers</summary><ul class="remarks">${remarks.map(words => html`<li>${words}</li>`)}</ul></details><//>`;
}

function Logits({ page, actions }) {
  const found = page.logits;
  return html`<${Panel} title="Writes" name="logits" help=${found?.convention ? `${HELP.logits} Computed as: ${found.convention}.` : HELP.logits} missing=${unread(page, "logits") ? actions ? "Its effects on the next token need the model: press “More from the model's weights” above, or make an index." : "Its effects on the next token need the model or an index." : page.missing.logits}>
    ${found && html`<div class="pair">
      <${Effects} title="promotes" rows=${found.promoted} />
      <${Effects} title="suppresses" rows=${found.suppressed} />
    </div>
    ${found.histogram && barsOf(found.histogram).length > 0 && html`<${Histogram} signed unit="effect on a token's logit" label="Effects on all tokens' logits" bars=${barsOf(found.histogram)} />
      ${found.moments && html`<p class="soft">sd ${number(found.moments.sd)}, skew ${number(found.moments.skew)}, kurtosis ${number(found.moments.kurtosis)}</p>`}`}`}
  <//>`;
}

const barsOf = held => Array.isArray(held) ? held : held.counts.map((count, i) => ({ low: held.edges[i], high: held.edges[i + 1], count }));

function Effects({ title, rows }) {
  const most = Math.max(...rows.map(row => Math.abs(row.effect)), 1e-9);
  return html`<table class="effects"><caption>${title}</caption><tbody>${rows.map(row => html`<tr>
    <th scope="row" class="mono" title=${quoted(row.token)}>${quoted(row.token)}</th>
    <td class="n"><span class=${`meter${sign(row.effect)}`} style=${{ "--w": Math.abs(row.effect) / most }}>${number(row.effect, 2)}</span></td>
  </tr>`)}</tbody></table>`;
}

function Activations({ page }) {
  const value = hovered.use();
  return !unread(page, "histogram") && html`<${Panel} title="Activations" name="histogram" help=${HELP.histogram} missing=${page.missing.histogram}>
    ${page.histogram && html`<${Histogram} bars=${page.histogram} logarithmic=${widening(page.histogram)} unit=${widening(page.histogram) ? "activation, logarithmic" : "activation"} mark=${value}
      label="Histogram of its activations where it is active" />
      <p class="soft">${Object.entries(page.statistics.quantiles || {}).map(([share, at]) => html`<span class="fact">${percent(Number(share))} below <b>${number(at)}</b></span>`)}</p>`}
  <//>`;
}

// whether bars get wider, as ours do (equal width in logarithms), or are all alike, as in some files of other tools
function widening(bars) {
  const size = bar => bar.high - bar.low, first = bars[0], last = bars[bars.length - 1];
  return first?.low > 0 && (bars.length < 2 || size(last) > 1.5 * size(first));
}

function FiresOn({ page }) {
  const rows = (page.tokens || []).slice(0, 10), most = Math.max(...rows.map(row => Math.abs(row.mass)), 1e-9), signed = anySign([(page.tokens || []).map(row => row.mass)]);
  if (!page.tokens) return null;
  return html`<${Panel} title="Fires on" name="tokens" help=${HELP.tokens}>
    <table class="effects"><thead><tr><th scope="col">token</th><th scope="col" class="n">times</th><th scope="col" class="n">in sum</th></tr></thead>
    <tbody>${rows.map(row => html`<tr><th scope="row" class="mono">${quoted(row.token)}</th><td class="n">${number(row.count)}</td>
      <td class="n"><span class=${`meter${signed ? sign(row.mass) : ""}`} style=${{ "--w": Math.abs(row.mass) / most }}>${number(row.mass)}</span></td></tr>`)}</tbody></table>
  <//>`;
}

function Neighbours({ page, link }) {
  const found = page.neighbours;
  if (!found) return null;
  return html`<${Panel} title="Neighbours" name="neighbours" help=${HELP.neighbours}>
    <div class="pair">${["decoder", "encoder"].filter(side => found[side].length).map(side => html`<table class="effects"><caption>${side}</caption><tbody>
      ${found[side].slice(0, 8).map(row => html`<tr><th scope="row">${link ? link(row.latent) : row.latent}
        ${row.label && html`<span class="soft"> ${row.label}</span>`}</th><td class="n">${number(row.cosine, 2)}</td></tr>`)}
    </tbody></table>`)}</div>
  <//>`;
}

function Together({ page, link }) {
  const rows = (page.coactive || []).slice(0, 8);
  return rows.length > 0 && html`<${Panel} title="Fires with" name="coactive" help=${HELP.coactive}>
    <table class="effects"><thead><tr><th scope="col">latent</th>${rows[0].jaccard === undefined ? html`<th scope="col" class="n">Pearson</th><th scope="col" class="n">cosine</th>` : html`<th scope="col" class="n">of both</th><th scope="col" class="n">of its tokens</th>`}</tr></thead><tbody>
    ${rows.map(row => html`<tr><th scope="row">${link ? link(row.latent) : row.latent}${row.label && html`<span class="soft"> ${row.label}</span>`}</th>
      ${row.jaccard === undefined ? html`<td class="n">${number(row.pearson)}</td><td class="n">${number(row.cosine)}</td>` : html`<td class="n">${percent(row.jaccard)}</td><td class="n">${percent(row.given)}</td>`}</tr>`)}</tbody></table><//>`;
}

function Sets({ page }) {
  const rows = (page.enrichment || []).filter(row => row.lift !== undefined && row.lift > 1).slice(0, 6);
  return rows.length > 0 && html`<${Panel} title="Kinds of tokens" name="enrichment" help=${HELP.enrichment}>
    <table class="effects"><thead><tr><th scope="col">kind</th><th scope="col" class="n">times its share</th></tr></thead><tbody>
    ${rows.map(row => html`<tr><th scope="row">${row.set ?? row.name}</th><td class="n">${number(row.lift)}</td></tr>`)}</tbody></table><//>`;
}

// tokens before, and pairs, that it fires on more often than by chance
function Patterns({ page }) {
  const found = page.patterns, rows = (found?.before || []).filter(row => row.lift > 1).slice(0, 6), pairs = (found?.bigrams || []).slice(0, 6);
  return (rows.length > 0 || pairs.length > 0) && html`<${Panel} title="What stands before" name="patterns" help=${HELP.patterns}>
    <p class="soft">${percent(found.common)} of its firings are on one token; the tokens it fires on hold ${number(found.entropy)} bits, the ones before them ${number(found.entropy_before)}${found.lower_bounds ? " (at least)" : ""}.</p>
    <div class="pair">${rows.length > 0 && html`<table class="effects"><thead><tr><th scope="col">before</th><th scope="col" class="n">times its share</th></tr></thead><tbody>
      ${rows.map(row => html`<tr><th scope="row" class="mono">${quoted(row.token)}</th><td class="n">${number(row.lift, 2)}</td></tr>`)}</tbody></table>`}
    ${pairs.length > 0 && html`<table class="effects"><thead><tr><th scope="col">pair</th><th scope="col" class="n">times</th></tr></thead><tbody>
      ${pairs.map(row => html`<tr><th scope="row" class="mono">${quoted(row.before)}${quoted(row.token)}</th><td class="n">${number(row.count)}</td></tr>`)}</tbody></table>`}</div><//>`;
}

function SetEffects({ page }) {
  const rows = (page.set_effects || []).filter(row => row.q < 0.05).slice(0, 8);
  return page.set_effects && html`<${Panel} title="Kinds of tokens it writes" name="set_effects" help=${HELP.set_effects}>
    ${!rows.length ? html`<p class="soft">no kind stands out</p>` : html`<table class="effects"><thead><tr><th scope="col">kind</th><th scope="col" class="n">effect</th></tr></thead><tbody>
    ${rows.map(row => html`<tr><th scope="row">${row.set}</th><td class="n"><span class=${`meter${sign(row.effect)}`} style=${{ "--w": Math.abs(row.effect) }}>${number(row.effect, 2)}</span></td></tr>`)}</tbody></table>`}<//>`;
}

function Correlated({ page }) {
  const rows = page.correlated_neurons || [];
  return rows.length > 0 && html`<${Panel} title="Correlated neurons" name="correlated" help=${HELP.correlated}>
    <table class="effects"><thead><tr><th scope="col">neuron</th><th scope="col" class="n">Pearson</th><th scope="col" class="n">cosine</th></tr></thead><tbody>
    ${rows.map(row => html`<tr><th scope="row">${row.neuron}</th><td class="n">${number(row.pearson)}</td><td class="n">${number(row.cosine)}</td></tr>`)}</tbody></table><//>`;
}

// parts that an index of an earlier version does not have
const LATER = { deciles: "examples of each tenth", uniform: "examples drawn alike", near: "places where it almost fires", silent: "silent places",
  patterns: "what stands before", coactive: "latents that fire with it", enrichment: "kinds of tokens it fires on" };

function Older({ page, making }) {
  const parts = Object.keys(LATER).filter(part => page.missing[part]?.includes("earlier version")).map(part => LATER[part]);
  const why = `An earlier version made this index, without ${parts.slice(0, -1).join(", ")}${parts.length > 1 ? " and " : ""}${parts.at(-1)}.`;
  return parts.length > 0 && html`<${Panel} title="Not in this index" name="older" help=${HELP.older} more=${making}
    missing=${making ? why : `${why} A fuller one, of texts of yours: \`monosem latents index ${page.dictionary} --text PATH --out my.sqlite\`, then \`monosem explore ${page.dictionary} --index my.sqlite\``} />`;
}

const NAMES = {
  kind: "kind", encoder_norm: "encoder norm", decoder_norm: "decoder norm", cosine: "cosine of both", bias: "bias",
  threshold: "threshold", decoder_bias: "decoder row · bias",
};

function Facts({ page }) {
  const s = page.statistics, g = page.geometry, neurons = page.neurons, heads = page.heads;
  const rows = pairs => html`<dl>${pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => html`<div><dt>${name}</dt><dd>${typeof value === "number" ? number(value) : String(value)}</dd></div>`)}</dl>`;
  const some = (pairs, panel) => pairs.some(([, value]) => value !== null && value !== undefined) && panel(rows(pairs));
  const moments = (title, m) => m ? ["mean", "sd", "skew", "kurtosis"].map(name => [`${name}, ${title}`, m[name]]) : [];
  const left = Object.entries(s?.skipped || {}).filter(([, count]) => count > 0).map(([why, count]) => `${number(count)} ${why}`).join(", ");
  const measured = s ? [["tokens not counted", left || undefined], ["log₁₀ density", s.log10_density], ...moments("active tokens", s.active), ...moments("all tokens", s.all)] : [];
  return html`${some(measured, shown => html`<${Panel} title="Statistics" name="statistics" help=${HELP.statistics}>${shown}<//>`)}
    ${g && html`<${Panel} title="Weights" name="geometry" help=${HELP.geometry}>
      ${rows(Object.entries(NAMES).map(([key, name]) => [name, g[key]]))}<//>`}
    ${neurons?.privileged && html`<${Panel} title="Neurons" name="neurons" help=${HELP.neurons}>
      ${rows(neurons.rows.map(row => [`neuron ${row.neuron}`, row.value]))}<//>`}
    ${heads && html`<${Panel} title="Heads" name="heads" help=${HELP.heads}>
      ${rows(heads.map(row => [`head ${row.head}`, row.share]))}<//>`}
    <${Panel} title="Where this comes from" name="provenance" help=${HELP.provenance}>
      <details><summary>model, dictionary, text</summary>
      ${rows(Object.entries(page.provenance).map(([name, value]) => [name.replace(/_/g, " "), typeof value === "object" ? JSON.stringify(value) : value]))}</details><//>`;
}

// chosen latents as a page of their own
export function draw(target, pages) {
  const link = own => latent => pages.some(page => page.latent === latent && page.dictionary === own.dictionary)
    ? html`<a href=${`#${latent}`}>${latent}</a>` : String(latent);
  render(html`<main class="alone">${pages.map(page => html`<div id=${String(page.latent)}>
    <${LatentView} page=${page} link=${link(page)} /></div>`)}</main><${Tip} />`, target);
}
