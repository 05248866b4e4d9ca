// What every latent writes: the logit lens of all decoder rows, and the kinds of tokens that they raise or lower.
import { html, Failed, Field, number, Waiting, useMemo } from "ui";
import { floats } from "server";
import { change, go, Link } from "place";
import { Progress } from "jobs";
import { Grid } from "grid";
import { quoted } from "tokens";
import { useComputed, Views } from "page/geometry";

const NUMBERS = { unusual: ["unusual", "standard deviations of that effect from its mean over all latents; the kind with the largest is shown"], effect: ["set effect", "2 AUC − 1 of the set of tokens that it moves most: 1 where all of the set are raised above all others"], q: ["q", "false discovery rate of the set, over the latent's sets"],
  sd: ["sd", "of its effects on all tokens"], skew: ["skew", "of its effects: positive where it raises a few tokens much"], kurtosis: ["kurtosis", "of its effects; 3 for a normal distribution"] };

export function Writes({ place, d }) {
  const { value, error, job, cancel, busy, start } = useComputed("written", { dictionary: d });
  const columns = useMemo(() => value && Object.fromEntries(Object.keys(NUMBERS).map(name => [name, floats(value[name])])), [value]);
  const sets = useMemo(() => value ? [...new Set(value.set.filter(Boolean))].sort() : [], [value]);
  const sort = columns?.[place.sort] ? place.sort : place.sort === "latent" ? "latent" : "unusual", down = place.up !== "1";
  const words = (place.q || "").toLowerCase();
  const order = useMemo(() => {
    if (!value) return [];
    const fits = i => (!place.s || value.set[i] === place.s) && (!words || value.promotes[i].some(one => one.toLowerCase().includes(words)));
    const number = i => (sort === "latent" ? i : columns[sort][i]), sign = down ? -1 : 1;
    return Array.from({ length: value.width }, (_, i) => i).filter(fits).sort((a, b) => {
      const [x, y] = [number(a), number(b)];
      return Number.isNaN(x) ? (Number.isNaN(y) ? a - b : 1) : Number.isNaN(y) ? -1 : sign * (x - y) || a - b;
    });
  }, [value, sort, down, place.s, words]);
  return html`<div class="lead"><h1>What do latents write?</h1><p class="soft wide">The direct effect of every decoder row on the next token's logits, and the kind of tokens that it moves most, beside what other latents do to that kind.</p></div>
    <${Views} now="writes" d=${d} />
    ${value === null && html`<button type="button" class="first" disabled=${busy} onClick=${start}>Read all decoder rows</button> <span class="soft">needs the model; some minutes on a processor</span>`}
    <${Failed} words=${error} /><${Progress} job=${job} cancel=${cancel} />
    ${value === undefined && !job && !error && html`<${Waiting} />`}
    ${value && html`<div class="filters"><${Field} label="Promotes"><input type="search" value=${place.q || ""} placeholder="a token" onChange=${event => change({ q: event.target.value }, true)} /><//>
      <${Field} label="Kind of tokens"><select value=${place.s || ""} onChange=${event => change({ s: event.target.value }, true)}><option value="">all</option>${sets.map(one => html`<option value=${one} selected=${one === place.s}>${one}</option>`)}</select><//>
      <span class="count" role="status">${number(order.length)} of ${number(value.width)}</span></div>
      <${Grid} label="What latents write" height=${620} order=${order} sort=${sort} down=${down} onOpen=${i => go("latent", { d, i })} onSort=${name => change({ sort: name, up: sort === name && down ? "1" : "" })}
        columns=${[{ name: "latent", title: "latent", help: "its number", n: true }, { name: "promotes", title: "promotes", plain: true, wide: true }, { name: "suppresses", title: "suppresses", plain: true, wide: true }, { name: "set", title: "kind of tokens", plain: true },
          ...Object.entries(NUMBERS).map(([name, [title, help]]) => ({ name, title, help, n: true }))]}
        cells=${i => [html`<${Link} page="latent" state=${{ d, i }}>${i}<//>`, ...["promotes", "suppresses"].map(name => html`<span class="mono">${value[name][i].map(quoted).join(" ")}</span>`), value.set[i] || "–", ...Object.keys(NUMBERS).map(name => number(columns[name][i]))]} />`}`;
}
