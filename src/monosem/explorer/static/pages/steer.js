// Turn latents and directions up or down and read what the model says, beside what it says without.
import { html, Field, Help, number, Panel, percent, useEffect, useState, at, away } from "ui";
import { change, Link } from "place";
import { Progress, useJob } from "jobs";
import { quoted, sign, strength, visible } from "tokens";
import { said, useTable, useWords } from "page/dictionary";

const HOWS = { add: "add to it", set: "set it", multiply: "multiply it" };
const UNITS = {
  own: ["own units", "A latent's activation, or a direction's own length."],
  norms: ["usual lengths", "1 adds as much as an activation at the site is usually long."],
  nats: ["nats (equal KL)", "Each side is scaled until the most changed twentieth of its tokens differs by so many nats."],
};
const MOST = 8; // columns beside the unchanged one

// "10:40,@name:2": latents and directions with their values; a value that is missing is the usual one; "-": none yet
export const doses = text => (text || "").split(",").filter(Boolean).map(part => {
  const [name, value] = part.split(":"), amount = value === undefined || value === "" || !Number.isFinite(Number(value)) ? null : Number(value);
  return name.startsWith("@") ? { direction: decodeURIComponent(name.slice(1)), value: amount } : { latent: Number(name), value: amount };
}).filter(one => one.direction || (Number.isInteger(one.latent) && one.latent >= 0)); // "-" is no number
const named = one => one.direction ? `@${encodeURIComponent(one.direction)}` : String(one.latent);
const written = list => list.map(one => (one.value === null ? named(one) : `${named(one)}:${one.value}`)).join(",");
const ending = name => name.split("/").pop(); // a model may be named by its folder
const series = text => (text || "").split(/[\s,;]+/).filter(Boolean).map(Number).filter(Number.isFinite);

export function Steer({ place, d, home }) {
  const { job, run, cancel, busy } = useJob();
  const table = useTable(d), maxima = table.columns?.maximum, spoken = useWords(d);
  const how = HOWS[place.how] ? place.how : "add", units = how === "add" && UNITS[place.u] ? place.u : "own";
  const model = home.dictionaries.find(one => one.name === d)?.model;
  const directions = home.directions.filter(one => !one.model || !model || ending(one.model) === ending(model));
  const usual = one => how === "multiply" ? 0 : units === "norms" ? 0.5 : one.direction ? 1 : Math.round(1.5 * (maxima?.[one.latent] || 20));
  const listOf = text => doses(text).map(one => ({ ...one, value: one.value ?? usual(one) }));
  const sides = { l: listOf(place.l), m: listOf(place.m) }, two = Boolean(place.m);
  const times = series(place.x), steps = times.length ? times : [1];
  const [text, setText] = useState(place.t || "From my experience,");
  useEffect(() => spoken.view([...sides.l, ...sides.m].filter(one => one.latent !== undefined).map(one => one.latent)), [place.l, place.m, d]);
  const columns = Object.entries(sides).filter(([, list]) => list.length).flatMap(([side, doses]) => steps.map(step => ({
    name: [two && sides.m.length ? (side === "l" ? "A" : "B") : "", units === "nats" ? `${number(step)} nats` : steps.length > 1 ? `× ${number(step)}` : ""].filter(Boolean).join(" "), doses, times: step })));
  const start = event => {
    event?.preventDefault();
    change({ t: text, l: written(sides.l), m: two ? written(sides.m) || "-" : undefined });
    run("steer", { dictionary: d, text, arms: columns, how, units, tokens: Number(place.n) || 60, temperature: Number(place.temp) || 0, seed: Number(place.seed) || 0, chat: place.chat === "1" });
  };
  const whole = [...doses(place.l), ...doses(place.m)].every(one => one.value !== null); // what a link holds is written at once
  useEffect(() => { if (place.t && whole && columns.length && columns.length <= MOST) start(); }, []);
  const editor = (key, title) => html`<${Doses} title=${title} d=${d} list=${sides[key]} how=${how} units=${units} maxima=${maxima} width=${table.width || 0} spoken=${spoken} directions=${directions}
    usual=${usual} set=${list => change({ [key]: written(list) || (key === "m" ? "-" : "") })} />`;
  return html`<div class="lead"><h1>Steer</h1><p class="soft wide">Change latents or directions while the model writes, and read it beside what it would have written.</p></div>
    <${Panel} title="What is changed" help="At every token that the dictionary was trained on; the rest of the activation stays as it is, and values beyond 1 to 3 times a latent's maximum often break the text.">
      ${editor("l", two ? "A" : "")}${two && editor("m", "B")}
      <div class="row"><${Field} label="how"><select aria-label="How it is changed" value=${how} onChange=${event => change({ how: event.target.value, l: sides.l.map(named).join(","), m: two ? sides.m.map(named).join(",") || "-" : undefined })}>${Object.entries(HOWS).map(([name, words]) => html`<option value=${name} selected=${name === how}>${words}</option>`)}</select><//>
        ${how === "add" && html`<${Field} label="amounts in"><select aria-label="Units" value=${units} onChange=${event => change({ u: event.target.value, x: "" })}>${Object.entries(UNITS).map(([name, [words]]) => html`<option value=${name} selected=${name === units}>${words}</option>`)}</select><//>`}
        <${Field} label=${units === "nats" ? "nats, one column each" : "times, one column each"}><input class="mono" aria-label="Strengths" placeholder="0.5 1 2" value=${place.x || ""} onChange=${event => change({ x: event.target.value })} /><//>
        <button type="button" onClick=${() => change({ m: two ? undefined : "-" })} aria-pressed=${String(two)}>${two ? "Without B" : "Compare with B"}</button></div>
      ${units !== "own" && html`<p class="soft">${UNITS[units][1]}</p>`}
      ${columns.length > MOST && html`<p class="failed">${columns.length} columns; at most ${MOST} are written at once</p>`}
    <//>
    <form onSubmit=${start}><${Panel} title="Prompt" help="What the model goes on from, without and with the change.">
      <textarea rows="3" aria-label="Prompt" maxlength="4000" value=${text} onInput=${event => setText(event.target.value)} onKeyDown=${event => event.key === "Enter" && (event.ctrlKey || event.metaKey) && start(event)}></textarea>
      <div class="row"><${Field} label="tokens"><input type="number" min="1" max="400" value=${place.n || 60} onChange=${event => change({ n: event.target.value })} /><//>
        <${Field} label="temperature"><input type="number" min="0" max="5" step="0.1" value=${place.temp || 0} onChange=${event => change({ temp: event.target.value })} /><//>
        <${Field} label="seed"><input type="number" min="0" value=${place.seed || 0} onChange=${event => change({ seed: event.target.value })} /><//>
        <label class="check"><input type="checkbox" checked=${place.chat === "1"} onChange=${event => change({ chat: event.target.checked ? "1" : "" })} /> as a chat</label>
        <button type="submit" class="first" disabled=${busy || !columns.length || columns.length > MOST || !text.trim()}>Write</button></div>
      <${Progress} job=${job} cancel=${cancel} /><//></form>
    ${job && html`<${Written} job=${job} columns=${job.asked?.arms || columns} busy=${busy} />`}`;
}

function Doses({ title, d, list, how, units, maxima, width, spoken, directions, usual, set }) {
  const same = (one, other) => one.latent === other.latent && one.direction === other.direction;
  const put = one => set([...list.filter(other => !same(one, other)), { ...one, value: usual(one) }]);
  const add = event => { event.preventDefault(); const field = event.target.elements.latent, latent = Number(field.value);
    if (field.value !== "" && Number.isInteger(latent) && latent >= 0 && latent < width) { put({ latent }); field.value = ""; } };
  return html`<div class="side-doses" role="group" aria-label=${title ? `Side ${title}` : "Changes"}>${title && html`<h3>${title}</h3>`}
    ${list.map(one => { const most = one.direction ? 1 : maxima?.[one.latent] || 20, reach = how === "multiply" ? 5 : units === "norms" ? 2 : one.direction ? 10 : 4 * most;
      const what = one.direction ? `direction ${one.direction}` : `latent ${one.latent}`, to = value => set(list.map(other => same(one, other) ? { ...one, value } : other));
      return html`<div class="dose" key=${what}>
        <span class="what">${one.direction ? html`<span class="mono">${one.direction}</span> <span class="soft">${directions.find(each => each.name === one.direction)?.site || "not here"}</span>`
          : html`<${Link} page="latent" state=${{ d, i: one.latent }}>${one.latent}<//> <span class="soft mono">${said(spoken.of(one.latent))}</span>`}</span>
        <input type="range" aria-label=${`Strength of ${what}`} min=${how === "multiply" ? 0 : -reach} max=${reach} step=${reach / 80} value=${one.value} onInput=${event => to(Number(Number(event.target.value).toPrecision(3)))} />
        <input type="number" step="any" aria-label=${`Value of ${what}`} value=${one.value} onChange=${event => to(Number(event.target.value))} />
        <span class="soft of">${how === "multiply" || units === "norms" ? "" : one.direction ? "× the direction" : maxima ? `${number(one.value / most, 2)} × its maximum` : ""}</span>
        <button type="button" class="plain" aria-label=${`Remove ${what}`} onClick=${() => set(list.filter(other => other !== one))}>✕</button></div>`; })}
    <form class="row" onSubmit=${add}><input name="latent" type="number" min="0" placeholder="latent" aria-label=${`Number of a latent to add${title && ` to ${title}`}`} /><button type="submit">Add a latent</button>
      ${directions.length > 0 && html`<select aria-label=${`Direction to add${title && ` to ${title}`}`} value="" onChange=${event => { if (event.target.value) put({ direction: event.target.value }); event.target.value = ""; }}>
        <option value="">add a direction</option>${directions.map(one => html`<option value=${one.name}>${one.name} (${one.site})</option>`)}</select>`}</form></div>`;
}

function Written({ job, columns, busy }) {
  const found = job.result, many = columns.length > 2, steps = columns.filter(column => column.doses === columns[0].doses).length;
  const rows = many && steps <= 4 && columns.length > steps; // a row for each side
  return html`<div class=${rows ? "sides many rows" : many ? "sides many" : "pair sides"} style=${{ "--n": steps + 1 }}>
      <${Side} title="Without" texts=${job.sides.plain} busy=${busy && !job.sides[0]} row=${found?.plain} />
      ${columns.map((column, i) => html`<${Side} key=${i} first=${rows && i === steps} title=${column.name ? `With ${column.name}` : "With"} texts=${job.sides[i]} busy=${busy && (i === 0 ? job.sides.plain : job.sides[i - 1])} row=${found?.arms[i]} column=${column} />`)}</div>
    ${found && html`<${Changes} found=${found} columns=${columns} />`}`;
}

// Tokens are underlaid by how much the change raised (or lowered) their log-probability; 3 nats is full colour.
function Side({ title, texts, busy, row, column, first }) {
  const shown = text => visible(text).replace(/↵/g, "↵\n");
  const amounts = row?.amounts && column?.doses.map((dose, i) => `${dose.direction || dose.latent}: ${number(row.amounts[i])}`).join(", ");
  return html`<section class=${first ? "panel side-text first-of-row" : "panel side-text"} aria-label=${title} aria-live="off"><div class="title"><h2>${title}</h2>${!column && html`<${Help} title="the numbers below">KL: how far the change moves the model's predictions. Perplexity: how odd the unchanged model finds the text; low is usual. Distinct pairs: how many pairs of neighbouring tokens occur once; near 0 is a loop. Blue tokens became likelier, orange ones less likely.<//>`}</div><p>${row?.raised ? row.tokens.map((token, i) => html`<span class=${`tok${sign(row.raised[i])}`} style=${{ "--v": 0.6 * strength(Math.min(Math.abs(row.raised[i]) / 3, 1)) }}
        onMouseMove=${event => at(event, html`<div><b class="mono">${quoted(token)}</b></div><div>log-probability ${row.raised[i] < 0 ? "lowered" : "raised"} by <b>${number(Math.abs(row.raised[i]))}</b> nats</div>`)} onMouseLeave=${away}>${shown(i ? token : token.trimStart())}</span>`)
      : texts ? shown(texts.join("").trimStart()) : ""}${busy && html`<span class="caret" aria-hidden="true"></span>`}</p>
    ${row && html`<p class="soft facts-small">${row.kl !== undefined && html`<span>KL ${number(row.kl)} nats at the first token, ${number(row.kl_text)} along the text</span>`}
      <span>perplexity ${number(row.perplexity)} under the unchanged model</span>${row.distinct !== null && html`<span>${percent(row.distinct)} distinct pairs</span>`}${amounts && html`<span>added ${amounts}</span>`}</p>`}</section>`;
}

function Changes({ found, columns }) {
  const most = Math.max(...found.changes.flatMap(row => [row.before, ...row.after]), 1e-9), moved = Math.max(...found.changes.flatMap(row => row.raised.map(Math.abs)), 1e-9);
  return html`<${Panel} title="The first new token" help="The tokens that the change moves most, among all with a chance of 0.1 % or more with or without it; nats say by how much their log-probability moves. Likely tokens that hardly move are not here.">
    <div class="scrolls" tabindex="0" role="region" aria-label="Changed tokens"><table class="changes"><thead><tr><th scope="col">token</th><th scope="col" class="n">without</th>${columns.map(column => html`<th scope="col" class="n">with ${column.name}</th><th scope="col" class="n">nats</th>`)}</tr></thead>
    <tbody>${found.changes.map(row => html`<tr><th scope="row" class="mono">${quoted(row.token)}</th><td class="n"><span class="meter" style=${{ "--w": row.before / most }}>${percent(row.before)}</span></td>
      ${row.after.map((p, i) => html`<td class="n"><span class="meter" style=${{ "--w": p / most }}>${percent(p)}</span></td><td class="n"><span class=${`meter${sign(row.raised[i])}`} style=${{ "--w": Math.abs(row.raised[i]) / moved }}>${row.raised[i] > 0 ? "+" : ""}${number(row.raised[i])}</span></td>`)}</tr>`)}</tbody></table></div><//>`;
}
