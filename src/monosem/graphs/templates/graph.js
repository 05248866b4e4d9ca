// The viewer of an attribution graph, as an ES module: mount(element, file) draws a graph file (JSON of the public
// format) and returns { select, pins, destroy }. Foreign text enters the page as text alone, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const R = 5, GAP = 13, LOWEST = 17, HIGHEST = 34, LEFT = 62, TOP = 34, BOTTOM = 58, MOST_DRAWN = 600, LISTED = 14, MOST_FOUND = 60;
const SINK = 0.3;  // share of units' influence at the first token from which they start hidden: a sink, the same for every prompt that begins so
const HELP = [["click", "inputs and outputs of a node"], ["← → ↑ ↓", "next node of the layer; strongest output, input"],
  ["p", "pin or unpin"], ["g", "group the pinned nodes into a supernode"], ["/", "search"], ["Esc", "clear"]];

const SCORES = "replacement: the share of influence that goes back to tokens, and not to errors; "
  + "completeness: the share of what nodes are made of that no error gives";

function el(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "circle", "rect", "text", "line", "title"].includes(tag);
  const node = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}

const shown = text => String(text).replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const number = value => value == null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);

function kindOf(node, kinds) {
  const type = { "embedding": "token", "logit": "logit", "mlp reconstruction error": "error" }[node.feature_type];
  return type || kinds[node.node_id] || "latent";
}

function model(file) {
  const ours = file.monosem || {}, evidence = ours.evidence || {};
  const tokens = file.metadata.prompt_tokens;
  const nodes = file.nodes.map(node => {
    const kind = kindOf(node, ours.kinds || {});
    const layer = kind === "token" ? -1 : Number(node.layer);
    const index = node.node_id.split("_")[1], found = evidence[node.node_id];
    const name = kind === "token" ? shown(tokens[node.ctx_idx])
      : kind === "logit" ? shown((node.clerp || "").replace(/^Output "/, "").replace(/" \(p=[0-9.]+\)$/, ""))
      : kind === "error" ? `error, layer ${layer}` : `layer ${layer} ${kind} ${index}`;
    const says = found && found.top ? found.top.slice(0, 3).map(shown).join(" ") : kind === "error" ? "" : node.clerp || "";
    return { ...node, id: node.node_id, kind, layer, pos: node.ctx_idx, name, says, found, into: [], from: [] };
  });
  const byId = new Map(nodes.map(node => [node.id, node]));
  for (const link of file.links) {
    const source = byId.get(link.source), target = byId.get(link.target);
    if (!source || !target) continue;
    const edge = { source, target, weight: link.weight };
    source.from.push(edge);
    target.into.push(edge);
  }
  for (const node of nodes) {
    node.into.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    node.from.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    const all = node.into.reduce((sum, edge) => sum + Math.abs(edge.weight), 0) || 1;
    for (const edge of node.into) edge.share = Math.abs(edge.weight) / all;
  }
  let before = 0;  // files hold cumulative influence, the strongest node first
  for (const node of nodes.filter(one => one.influence != null).sort((a, b) => a.influence - b.influence)) {
    node.own = Math.max(0, node.influence - before);
    before = node.influence;
  }
  return { nodes, byId, tokens };
}

export function mount(root, file, options = {}) {
  const { nodes, byId, tokens } = model(file);
  const heads = (file.monosem || {}).heads || [];
  const levels = [...new Set(nodes.map(node => node.layer))].sort((a, b) => a - b);
  const pins = new Set((file.qParams.pinnedIds || []).filter(id => byId.has(id)));
  const groups = (file.qParams.supernodes || []).map(([label, ...ids]) => ({ label, ids: ids.filter(id => byId.has(id)) }));
  const units = nodes.filter(node => node.kind !== "token" && node.kind !== "logit");
  const total = (of) => of.filter(node => node.kind !== "error").reduce((sum, node) => sum + (node.own || 0), 0);
  const sink = tokens.length > 1 ? total(units.filter(node => node.pos === 0)) / (total(units) || 1) : 0;
  const state = { share: 1, edges: 0.03, errors: true, first: sink <= SINK, query: "", chosen: null };
  const ordered = units.filter(among).map(node => node.influence ?? 1).sort((a, b) => a - b);
  if (ordered.length) state.share = Math.min(1, Math.ceil(ordered[Math.min(ordered.length - 1, 119)] * 100) / 100);

  const chart = el("svg", { role: "img", "aria-label": "attribution graph, layers by tokens", tabindex: 0 });
  const panel = el("aside", { class: "panel", "aria-live": "polite" });
  const count = el("span", { class: "soft" });
  const slider = (label, key, max, step, title) => el("label", { title }, label,
    el("input", { type: "range", min: 0, max, step, value: state[key], "data-for": key,
      oninput: event => { state[key] = Number(event.target.value); draw(); } }));
  const search = el("input", { type: "search", placeholder: "search tokens, layers, words", "aria-label": "search", size: 27,
    oninput: event => { state.query = event.target.value.toLowerCase(); draw(); } });
  const check = (label, key, title) => el("label", { title }, el("input", { type: "checkbox", checked: state[key], "data-for": key,
    onchange: event => { state[key] = event.target.checked; draw(); } }), label);
  const bar = el("div", { class: "bar" },
    slider("nodes", "share", 1, 0.01, "show the nodes that make up this share of the influence"),
    slider("edges", "edges", 0.3, 0.005, "hide edges below this share of a node's inputs"),
    check("errors", "errors", "what nodes do not explain"),
    tokens.length > 1 ? check("first token", "first", "nodes at the first token, which read nothing else") : null, search,
    el("button", { onclick: () => save("graph.svg", picture(), "image/svg+xml") }, "SVG"),
    el("button", { onclick: () => save("graph.json", JSON.stringify(pinned()), "application/json") }, "JSON"), count);
  const stage = el("div", { class: "stage" }, chart);
  root.replaceChildren(bar, el("div", { class: "columns" }, stage, panel));
  root.classList.add("attribution-graph");

  function among(node) { return (state.errors || node.kind !== "error") && (state.first || node.pos !== 0); }

  function visible(node) {
    if (node.kind === "token" || node.kind === "logit" || pins.has(node.id) || node === state.chosen) return true;
    return among(node) && (node.influence ?? 0) <= state.share;
  }

  const matches = node => state.query !== ""
    && `${node.id} ${node.name} ${node.says} ${(node.found?.top || []).join(" ")}`.toLowerCase().includes(state.query);

  function place(drawn) {
    const cells = new Map();
    for (const node of drawn) {
      const key = `${node.layer}:${node.pos}`;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(node);
    }
    const inside = levels.slice(0, -1), free = stage.clientHeight - TOP - BOTTOM - 4;
    const high = Math.max(LOWEST, Math.min(HIGHEST, free / levels.length));
    const widths = tokens.map((token, pos) => Math.max(shown(token).length * 7 + 14, 40,
      ...inside.map(layer => (cells.get(`${layer}:${pos}`) || []).length * GAP + 16)));
    const spare = (stage.clientWidth - LEFT - 16 - widths.reduce((a, b) => a + b, 0)) / widths.length;
    if (spare > 0) widths.forEach((width, i) => { widths[i] = width + spare; });
    const starts = [];
    widths.reduce((at, width, i) => (starts[i] = at, at + width), LEFT);
    const height = TOP + levels.length * high + BOTTOM, right = LEFT + widths.reduce((a, b) => a + b, 0);
    for (const list of cells.values()) {
      list.sort((a, b) => (a.influence ?? 0) - (b.influence ?? 0) || (b.token_prob || 0) - (a.token_prob || 0));
      const total = list.reduce((sum, node) => sum + room(node), 0);
      let x = Math.max(LEFT, Math.min(starts[list[0].pos] + (widths[list[0].pos] - total) / 2, right - total));
      for (const node of list) {
        node.x = x + room(node) / 2;
        x += room(node);
        node.y = height - BOTTOM - (levels.indexOf(node.layer) + 0.5) * high;
      }
    }
    return { width: right + 8, height, high, starts, widths };
  }

  function keepNames() {  // of layers, beside what is scrolled to
    chart.querySelector(".names").setAttribute("transform", `translate(${stage.scrollLeft},0)`);
  }

  const room = node => node.kind === "logit" ? label(node).length * 6.6 + 16 : GAP;
  const label = node => node.kind === "logit" && node.token_prob ? `${node.name} ${Math.round(100 * node.token_prob)} %` : node.name;

  function draw() {
    const drawn = nodes.filter(visible), here = new Set(drawn), { width, height, high, starts, widths } = place(drawn);
    const near = state.chosen && new Map([...state.chosen.into.map(edge => [edge.source, edge.weight]),
      ...state.chosen.from.map(edge => [edge.target, edge.weight])]);
    const lines = el("g", { class: "lines" });
    let edges = state.chosen ? [...state.chosen.into, ...state.chosen.from] : drawn.flatMap(node => node.into);
    edges = edges.filter(edge => here.has(edge.source) && here.has(edge.target)
      && (edge.share >= state.edges || (state.chosen && edge.share >= state.edges / 3)));
    edges.sort((a, b) => b.share - a.share);
    for (const edge of edges.slice(0, MOST_DRAWN).reverse()) {
      const { source: a, target: b } = edge, middle = (a.y + b.y) / 2;
      lines.append(el("path", { d: `M${a.x},${a.y} C${a.x},${middle} ${b.x},${middle} ${b.x},${b.y}`,
        class: edge.weight < 0 ? "minus" : "plus", "stroke-width": (0.6 + 5 * edge.share).toFixed(2),
        opacity: (state.chosen ? 0.35 : 0.12) + 0.6 * Math.min(1, edge.share * 2) }));
    }
    const rows = el("g", { class: "rows" }), names = el("g", { class: "rows names" }, el("rect", { width: LEFT - 6, height }));
    levels.forEach((layer, i) => {
      const y = height - BOTTOM - (i + 0.5) * high, last = i === levels.length - 1;
      rows.append(el("line", { x1: LEFT - 6, x2: width, y1: y, y2: y }));
      names.append(el("text", { x: LEFT - 12, y: y + 4, "text-anchor": "end" }, layer < 0 ? "tokens" : last ? "logits" : String(layer)));
    });
    tokens.forEach((token, pos) => rows.append(el("text", { class: "token", "text-anchor": "middle",
      x: starts[pos] + widths[pos] / 2, y: height - BOTTOM + 26 }, shown(token))));
    const marks = el("g", { class: "nodes" });
    for (const node of drawn) {
      const group = groups.findIndex(one => one.ids.includes(node.id));
      const classes = ["node", node.kind, pins.has(node.id) && "pinned", node === state.chosen && "chosen",
        near && node !== state.chosen && !near.has(node) && "far", matches(node) && "found", group >= 0 && `group g${group % 6}`];
      const shape = node.kind === "logit" ? el("rect", { x: -room(node) / 2 + 3, y: -9, width: room(node) - 6, height: 18, rx: 5 })
        : node.kind === "error" ? el("path", { d: "M0,-4.5 L4.5,0 L0,4.5 L-4.5,0 Z" })
        : node.kind === "token" ? el("rect", { x: -4.5, y: -4.5, width: 9, height: 9 }) : el("circle", { r: R });
      marks.append(el("g", { class: classes.filter(Boolean).join(" "), transform: `translate(${node.x},${node.y})`,
        "data-id": node.id, onclick: () => select(node) }, el("title", {}, `${node.name}  ${node.says}`), shape,
        node.kind === "logit" ? el("text", { "text-anchor": "middle", y: 4 }, label(node)) : null));
    }
    chart.replaceChildren(rows, lines, marks, names);
    keepNames();
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` })) chart.setAttribute(name, value);
    count.textContent = `${drawn.length} of ${nodes.length} nodes`;
    inform();
  }

  function row(node, weight, share, words) {
    return el("button", { class: "row", "data-id": node.id, onclick: () => select(node) },
      el("span", { class: "bar2" }, el("i", { class: weight < 0 ? "minus" : "plus", style: `width:${Math.max(2, 100 * share).toFixed(0)}%` })),
      el("span", { class: "name" }, node.name, node.kind === "token" || node.kind === "logit" ? null
        : el("small", {}, ` at ${shown(tokens[node.pos])}`)),
      el("span", { class: "says" }, node.says), el("span", { class: "weight" }, words ?? number(weight)));
  }

  const example = one => el("p", { class: "example" }, ...one.tokens.map((token, at) => {
    const share = Math.min(1, Math.max(0, one.values[at] / (one.most || 1)));
    return el("span", share ? { style: `--v:${(0.05 + 0.95 * Math.log10(1 + 9 * share)).toFixed(2)}`, title: number(one.values[at]) } : {}, token);
  }));

  function head(one) {
    const known = entries => entries.filter(entry => byId.has(entry.id)), named = id => byId.has(id)
      ? el("button", { class: "link", "data-id": id, onclick: () => select(byId.get(id)) }, byId.get(id).name, el("small", {}, ` at ${shown(tokens[byId.get(id).pos])}`))
      : el("span", { class: "soft" }, id === "left out" ? "nodes that were left out" : id);
    fill(el("h2", {}, one.label), el("p", { class: "soft" }, `score ${number(one.score)}, pattern ${number(one.pattern)}`),
      el("h3", {}, "Pairs: what the query is made of × the key"), ...one.pairs.slice(0, LISTED).map(pair => el("div", { class: "pair" },
        named(pair.query), el("span", { class: "weight" }, number(pair.weight)), el("span", { class: "key" }, "× ", named(pair.key)))),
      ...list("At the query", known(one.queries), entry => byId.get(entry.id)), ...list("At the key", known(one.keys), entry => byId.get(entry.id)));
  }

  const own = node => row(node, node.own, Math.min(1, (node.own || 0) / Math.max(...units.filter(among).map(one => one.own || 0), 1e-10)), `${(100 * (node.own || 0)).toFixed(1)} %`);
  const fill = (...children) => panel.replaceChildren(...children.filter(child => child != null));

  function list(title, edges, other) {
    const most = Math.abs(edges[0]?.weight || 1);
    return edges.length ? [el("h3", {}, title), ...edges.slice(0, LISTED).map(edge => row(other(edge), edge.weight, Math.abs(edge.weight) / most)),
      edges.length > LISTED ? el("p", { class: "soft" }, `and ${edges.length - LISTED} more`) : null] : [];
  }

  function together(group) {
    const members = new Set(group.ids.map(id => byId.get(id))), sum = (side, other) => {
      const found = new Map();
      for (const node of members) for (const edge of node[side]) if (!members.has(edge[other]))
        found.set(edge[other], (found.get(edge[other]) || 0) + edge.weight);
      return [...found].map(([node, weight]) => ({ node, weight })).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    };
    fill(el("h2", {}, group.label), el("p", { class: "soft" }, `${group.ids.length} nodes; sums over them`),
      ...list("Inputs", sum("into", "source"), edge => edge.node), ...list("Outputs", sum("from", "target"), edge => edge.node));
  }

  function inform() {
    const node = state.chosen;
    const words = (does, list) => el("p", {}, `${does} `, ...list.flatMap(word => [el("code", {}, shown(word)), " "]));
    if (!node && state.query) {
      const found = nodes.filter(matches), hidden = found.filter(one => !visible(one)).length;
      found.sort((a, b) => (b.own || 0) - (a.own || 0));
      fill(el("h2", {}, `${found.length} ${found.length === 1 ? "node" : "nodes"} found`),
        hidden ? el("p", { class: "soft" }, `${hidden} of them not in the picture; a click shows one`) : null,
        ...found.slice(0, MOST_FOUND).map(own), found.length > MOST_FOUND ? el("p", { class: "soft" }, `and ${found.length - MOST_FOUND} more`) : null, ...kept());
      return;
    }
    if (!node) {
      const best = units.filter(one => one.kind !== "error" && among(one)).sort((a, b) => (a.influence ?? 1) - (b.influence ?? 1)).slice(0, LISTED);
      const scores = Object.entries((file.monosem || {}).scores || {}).filter(([name]) => !name.startsWith("circuit"));
      fill(el("h2", {}, "Most influential nodes"),
        el("p", { class: "soft" }, "Blue edges raise, orange ones lower; bars and shares: of the influence on the answer."),
        scores.length ? el("p", { class: "soft", title: SCORES }, scores.map(([name, value]) => `${name} ${Math.round(100 * value)} %`).join(", ")) : null,
        state.first ? null : el("p", { class: "soft" }, `Nodes at the first token are hidden: they read no other token, and have ${Math.round(100 * sink)} % of the influence of all nodes of their kind. `,
          el("button", { class: "link", "data-do": "first", onclick: () => { bar.querySelector("[data-for=first]").click(); } }, "Show them")),
        ...kept(), heads.length ? el("h3", {}, "Heads") : null,
        ...heads.map(one => el("p", {}, el("button", { onclick: () => head(one), "data-do": "head" }, one.label))),
        pins.size || groups.length || heads.length ? el("h3", {}, "By influence") : null, ...best.map(own), keys());
      return;
    }
    const facts = [node.kind === "logit" ? `probability ${number(node.token_prob)}` : node.activation == null ? null : `value ${number(node.activation)}`,
      node.kind === "token" ? null : `at ${shown(tokens[node.pos])} (${node.pos})`];
    fill(el("h2", {}, node.name), el("p", { class: "soft" }, facts.filter(Boolean).join(", ")),
      ...(node.found ? [words("promotes", node.found.top), words("suppresses", node.found.bottom)] : []),
      node.found?.explained ? el("p", {}, node.found.explained) : null,
      ...(node.found?.examples?.length ? [el("h3", {}, "Where it fires in the corpus"), ...node.found.examples.map(example)] : []),
      el("p", {}, el("button", { onclick: () => pin(node), "data-do": "pin" }, pins.has(node.id) ? "unpin" : "pin")),
      ...list("Inputs", node.into, edge => edge.source), ...list("Outputs", node.from, edge => edge.target), ...kept());
  }

  function kept() {
    const found = [];
    if (groups.length) found.push(el("h3", {}, "Supernodes"), ...groups.map((group, i) => el("div", { class: `super g${i % 6}` },
      el("input", { value: group.label, "aria-label": "name", onchange: event => { group.label = event.target.value; } }),
      el("button", { onclick: () => together(group) }, `${group.ids.length} nodes`),
      el("button", { onclick: () => { groups.splice(i, 1); draw(); } }, "dissolve"))));
    if (pins.size) found.push(el("h3", {}, "Pinned"), ...[...pins].map(id => own(byId.get(id))),
      el("p", {}, el("button", { onclick: group, "data-do": "group" }, "group into a supernode")));
    return found;
  }

  const keys = () => el("dl", { class: "keys soft" }, ...HELP.flatMap(([key, does]) => [el("dt", {}, key), el("dd", {}, does)]));

  function select(node) { state.chosen = node; draw(); if (node && node.x) reveal(node); }
  function pin(node) { pins.has(node.id) ? pins.delete(node.id) : pins.add(node.id); draw(); }
  function group() {
    const ids = [...pins].filter(id => !groups.some(one => one.ids.includes(id)));
    if (!ids.length) return;
    groups.push({ label: `supernode ${groups.length + 1}`, ids });
    pins.clear();
    draw();
  }
  function reveal(node) {
    if (node.x < stage.scrollLeft + 40 || node.x > stage.scrollLeft + stage.clientWidth - 40)
      stage.scrollLeft = node.x - stage.clientWidth / 2;
    if (node.y < stage.scrollTop + 20 || node.y > stage.scrollTop + stage.clientHeight - 20)
      stage.scrollTop = node.y - stage.clientHeight / 2;
  }
  function pinned() {
    const supernodes = groups.map(one => [one.label, ...one.ids]);
    return { ...file, qParams: { ...file.qParams, pinnedIds: [...pins, ...groups.flatMap(one => one.ids)], supernodes } };
  }
  function picture() {
    const copy = chart.cloneNode(true), pairs = [chart, copy].map(one => [...one.querySelectorAll("*")]);
    pairs[0].forEach((node, i) => {
      const style = getComputedStyle(node);
      for (const name of ["fill", "stroke", "stroke-width", "font", "opacity"]) pairs[1][i].style.setProperty(name, style.getPropertyValue(name));
    });
    copy.querySelector(".names").removeAttribute("transform");
    copy.querySelector(".names rect").remove();
    copy.setAttribute("xmlns", SVG);
    copy.style.background = getComputedStyle(document.body).backgroundColor;
    return new XMLSerializer().serializeToString(copy);
  }
  function save(name, text, type) {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function press(event) {
    const at = event.target, slides = at.type === "range" && event.key.startsWith("Arrow");
    const types = at.matches?.("textarea, select, [contenteditable], input:not([type=range], [type=checkbox])");
    if ((types || slides) && event.key !== "Escape") return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = state.chosen, row = node && nodes.filter(one => visible(one) && one.layer === node.layer).sort((a, b) => a.x - b.x);
    const to = { ArrowLeft: () => row[row.indexOf(node) - 1], ArrowRight: () => row[row.indexOf(node) + 1],
      ArrowUp: () => node.from[0]?.target, ArrowDown: () => node.into[0]?.source }[event.key];
    if (event.key === "/") search.focus();
    else if (event.key === "Escape") { state.query = search.value = ""; search.blur(); select(null); }
    else if (event.key === "g") group();
    else if (event.key === "p" && node) pin(node);
    else if (to) { const next = node ? to() : nodes.find(one => one.kind === "logit"); if (next) select(next); }
    else return;
    event.preventDefault();
  }
  document.addEventListener("keydown", press);
  window.addEventListener("resize", draw);
  draw();
  stage.addEventListener("scroll", keepNames);
  stage.scrollLeft = stage.scrollWidth;
  return { select: id => select(byId.get(id) || null), pins: pinned, picture,
    destroy: () => { document.removeEventListener("keydown", press); window.removeEventListener("resize", draw); root.replaceChildren(); } };
}
