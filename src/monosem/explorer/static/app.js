// The frame around the pages: where one can go, the search, keys, the theme.
import { html, render, helps, Component, Failed, Tip, Waiting, useEffect, useRef, useState } from "ui";
import { useData } from "server";
import { change, go, here, Link, usePlace } from "place";
import { keep, problem, starred, STARS } from "notes";
import { MakingNow } from "making";
import { Home } from "page/home";
import { DictionaryPage } from "page/dictionary";
import { LatentPage, step, explain } from "page/latent";
import { Lists } from "page/lists";
import { Steer } from "page/steer";
import { Prompt } from "page/prompt";
import { MapPage } from "page/map";
import { Compare } from "page/compare";
import { LensPage } from "page/lens";
import { Patching } from "page/patching";
import { GraphPage } from "page/graph";
import { Reports } from "page/reports";
import { Public } from "page/public";
import { Geometry, VIEWS } from "page/geometry";
import { Splitting } from "page/splitting";
import { Circles } from "page/circles";
import { Meta } from "page/meta";
import { Absorbing } from "page/absorbers";
import { Writes } from "page/writes";
import { SweepPage } from "page/sweep";
import { Files } from "page/files";

const PAGES = {
  home: [Home, "Dictionaries"], dictionary: [DictionaryPage, "Latents"], latent: [LatentPage, "Latent"],
  map: [MapPage, "Map"], prompt: [Prompt, "Prompt"], steer: [Steer, "Steer"],
  compare: [Compare, "Compare"], lens: [LensPage, "Lens"], patching: [Patching, "Patching"], graph: [GraphPage, "Graph"],
  geometry: [Geometry, "Geometry"], splitting: [Splitting, "Families"], circles: [Circles, "Circles"], meta: [Meta, "Meta-latents"],
  absorbers: [Absorbing, "Absorbers"], writes: [Writes, "Writes"],
  lists: [Lists, "Lists"], reports: [Reports, "Reports"],
  public: [Public, "Neuronpedia"], sweep: [SweepPage, "Sweep"], files: [Files, "Files"],
};
const LINKS = ["dictionary", "geometry", "prompt", "steer", "compare", "lens", "patching", "graph", "lists"];

// page -> the keys of its address that are numbers of latents, and which key names their dictionary
const NUMBERS = { latent: { i: "d" }, splitting: { i: "d" }, meta: { i: "d" }, compare: { a: "d", b: "e" } };

// what is wrong with an address, or null
function wrong(place, { dictionaries }, first) {
  if (!Object.hasOwn(PAGES, place.page)) return `There is no page “${place.page}”.`;
  for (const name of [place.d, place.e].filter(Boolean)) {
    const found = dictionaries.find(one => one.name === name);
    if (!found) return `No dictionary “${name}” is open here.`;
    if (found.error) return `${name}: ${found.error}`;
  }
  for (const [key, of] of Object.entries(NUMBERS[place.page] || {})) {
    const own = dictionaries.find(one => one.name === (place[of] || place.d || first)), asked = place[key];
    if (asked !== undefined && own && !(/^\d{1,9}$/.test(asked) && Number(asked) < own.width)) return `There is no latent “${asked}”: ${own.name} has latents 0 to ${own.width - 1}.`;
  }
  return null;
}

function Nowhere({ words, home }) {
  return html`<div class="lead"><h1>Nothing is here</h1><p class="wide" role="alert">${words}</p></div>
    <ul class="plainlist">${home.dictionaries.filter(one => !one.error).map(one => html`<li><${Link} page="dictionary" state=${{ d: one.name }}>${one.name}<//></li>`)}</ul>`;
}

class Guarded extends Component {
  componentDidCatch(error) { this.setState({ error: String(error.message || error), of: this.props.at }); }
  render({ children, at }, { error, of }) { return error && of === at ? html`<${Failed} words=${`this page broke: ${error}`} />` : children; }
}

function theme(next) {
  if (next) localStorage.setItem("theme", next);
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  return chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function Theme() {
  const [now, setNow] = useState(theme());
  const other = now === "dark" ? "light" : "dark";
  return html`<button type="button" class="plain" aria-label=${`Switch to ${other} colours`} onClick=${() => { theme(other); setNow(other); }}>${now === "dark" ? "☀" : "☾"}</button>`;
}

function Bar({ place, home }) {
  const search = useRef(null);
  const names = home.value ? home.value.dictionaries.filter(one => !one.error).map(one => one.name) : [];
  const d = place.d || names[0];
  const find = event => {
    event.preventDefault();
    const words = search.current.value.trim();
    if (!words || !d) return;
    if (/^\d+$/.test(words)) go("latent", { d, i: words }); else go("dictionary", { d, q: words });
    search.current.blur();
  };
  useEffect(() => { document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); }, [place.page, home.value]); // on a phone not all fit; sweeps come later
  return html`<header class="top">
    <${Link} page="home" class="brand">monosem<//>
    <select aria-label="Dictionary" value=${d} onChange=${event => go(["home", "lists", "reports", "public", "sweep", "files"].includes(place.page) ? "dictionary" : place.page === "latent" ? "dictionary" : place.page, { d: event.target.value })}>
      ${names.map(name => html`<option value=${name} selected=${name === d}>${name}</option>`)}</select>
    <nav aria-label="Pages">${LINKS.flatMap(name => name === "steer" && home.value?.sweeps.length ? [name, "sweep"] : [name]).map(name => html`<${Link} page=${name} state=${{ d }} aria-current=${place.page === name || (name === "geometry" && place.page in VIEWS) ? "page" : undefined}>${PAGES[name][1]}<//>`)}</nav>
    <${MakingNow} /><form role="search" onSubmit=${find}><input ref=${search} id="search" type="search" placeholder="find" aria-label="Find a latent by number or words" /></form>
    <${Theme} />
  </header>`;
}

const KEYS = {
  "/": () => document.getElementById("search")?.focus(),
  "?": () => helps.set(!helps.get()),
  j: () => step(1), k: () => step(-1),
  r: () => step(null),
  e: () => explain(),
  s: star,
};

async function star() {
  const { page, d, i } = here();
  if (page !== "latent") return;
  document.querySelector(".lead .star")?.click();
}

function App() {
  const place = usePlace(), home = useData("home");
  useEffect(() => {
    const press = event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest("input,textarea,select,[contenteditable]")) { if (event.key === "Escape") event.target.blur(); return; }
      const act = KEYS[event.key];
      if (act) { event.preventDefault(); act(); }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const [Page, title] = Object.hasOwn(PAGES, place.page) ? PAGES[place.page] : [null, "Nothing here"];
  const first = home.value?.dictionaries.find(one => !one.error)?.name;
  const d = place.d || first, lost = home.value && wrong(place, home.value, first);
  useEffect(() => { document.title = `${place.i !== undefined && place.page === "latent" ? `${place.i} · ` : ""}${title} · monosem`; }, [place]);
  return html`<a class="skip" href="#content">Skip to the page</a><${Bar} place=${place} home=${home} />
    <main id="content" class=${`page-${place.page}`} tabindex="-1">
      <${Failed} words=${problem.use()} />
      ${home.error ? html`<${Failed} words=${home.error} />` : !home.value ? html`<${Waiting} words="reading the dictionaries" />`
        : lost ? html`<${Nowhere} words=${lost} home=${home.value} />` : html`<${Guarded} at=${location.href} key=${place.page}><${Page} place=${place} d=${d} home=${home.value} /><//>`}
    </main><${Tip} />`;
}

theme();
render(html`<${App} />`, document.getElementById("app"));
