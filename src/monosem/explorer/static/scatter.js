// A cloud of points on a canvas.
import { html, number, useEffect, useMemo, useRef, useState, at, away } from "ui";

const wide = (low, high) => low > 0 && high / low > 100;

// of the values at places where the other axis has one, too
export function axisOf(values, others = values) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < values.length; i++) if (Number.isFinite(values[i]) && Number.isFinite(others[i])) {
    const value = values[i]; if (value < low) low = value; if (value > high) high = value; }
  if (!(low <= high)) return null;
  const log = wide(low, high), to = log ? Math.log10 : value => value;
  const a = to(low), b = to(high) === to(low) ? to(low) + 1 : to(high);
  return { log, low, high, share: value => (to(value) - a) / (b - a) };
}

// round values along an axis: powers of ten where it is logarithmic (with 2 and 5 where these are few), else steps of 1, 2 or 5
const MOST_TICKS = 6;
export function ticksOf({ log, low, high }) {
  const found = [], span = high - low;
  if (!(span > 1e-4 * Math.max(Math.abs(low), Math.abs(high)))) return [low]; // all alike
  if (log) {
    const first = Math.floor(Math.log10(low)), decades = Math.ceil(Math.log10(high)) - first;
    const every = Math.ceil(decades / MOST_TICKS), within = high / low < 250 ? [1, 2, 5] : [1];
    for (let k = first; k <= first + decades; k += every) for (const m of within) found.push(m * 10 ** k);
  } else {
    const rough = 10 ** Math.floor(Math.log10(span / MOST_TICKS));
    const step = rough * [1, 2, 5, 10].find(m => span / (m * rough) <= MOST_TICKS);
    for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  }
  return found.filter(value => value >= low && value <= high);
}

export function inside(polygon, x, y) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

// x, y: Float32Arrays; color: of each point a share 0..1 or a CSS colour, or null; shown: Uint8Array of what is not filtered away
// axes with the same unit both ways, so that distances are what they are
function alike([ax, ay], width, height) {
  if (!ax || !ay) return [ax, ay];
  const unit = Math.max((ax.high - ax.low) / width, (ay.high - ay.low) / height) || 1;
  return [[ax, width], [ay, height]].map(([axis, size]) => ({ ...axis, share: value => 0.5 + (value - (axis.low + axis.high) / 2) / (unit * size) }));
}

export function Scatter({ x, y, names, color, shown, chosen, onOpen, onLasso, tipOf, height: most = 380, plain = false }) {
  const canvas = useRef(null), box = useRef(null);
  const [width, setWidth] = useState(0);
  const [lasso, setLasso] = useState(null);
  const height = plain && width ? Math.min(most, width) : most;
  const pad = plain ? [8, 8, 8, 8] : [10, 12, 34, 52]; // top, right, bottom, left
  const own = useMemo(() => [axisOf(x, y), axisOf(y, x)], [x, y]);
  const axes = plain && width ? alike(own, width - pad[1] - pad[3], height - pad[0] - pad[2]) : own;
  useEffect(() => {
    const watch = new ResizeObserver(entries => setWidth(Math.floor(entries[0].contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const [ax, ay] = axes;
  const place = i => [
    pad[3] + ax.share(x[i]) * (width - pad[1] - pad[3]),
    height - pad[2] - ay.share(y[i]) * (height - pad[0] - pad[2]),
  ];
  useEffect(() => {
    if (!width || !ax || !ay) return;
    const draw = () => paint(canvas.current, { width, height, pad, x, y, ax, ay, place, color, shown, chosen, lasso, names, plain });
    draw();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", draw);
    const watch = new MutationObserver(draw);
    watch.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => { dark.removeEventListener("change", draw); watch.disconnect(); };
  }, [width, height, x, y, color, shown, chosen, lasso]);
  if (!ax || !ay) return html`<div ref=${box} class="soft">no latent has both numbers</div>`;
  const near = event => {
    const seen = canvas.current.getBoundingClientRect(), px = event.clientX - seen.left, py = event.clientY - seen.top;
    let best = -1, least = 18 ** 2;
    for (let i = 0; i < x.length; i++) {
      if (shown && !shown[i]) continue;
      const [qx, qy] = place(i), d = (qx - px) ** 2 + (qy - py) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return { best, px, py };
  };
  const move = event => {
    const { best, px, py } = near(event);
    if (lasso) { setLasso([...lasso, [px, py]]); return; }
    if (best < 0) away(); else at(event, tipOf(best));
    canvas.current.style.cursor = best < 0 ? (onLasso ? "crosshair" : "default") : "pointer";
  };
  const down = event => { if (onLasso && near(event).best < 0) { const n = near(event); setLasso([[n.px, n.py]]); event.target.setPointerCapture?.(event.pointerId); } };
  const up = () => {
    if (!lasso) return;
    const found = [];
    if (lasso.length > 4) for (let i = 0; i < x.length; i++) if ((!shown || shown[i]) && inside(lasso, ...place(i))) found.push(i);
    setLasso(null);
    if (lasso.length > 4) onLasso(found);
  };
  const click = event => { const { best } = near(event); if (best >= 0 && !lasso) { away(); onOpen(best); } };
  const say = `${x.length.toLocaleString("en")} latents by ${names.join(" and ")}`;
  return html`<div ref=${box} class="scatter"><canvas ref=${canvas} role="img" aria-label=${say}
    onPointerMove=${move} onPointerDown=${down} onPointerUp=${up} onPointerLeave=${away} onClick=${click}></canvas></div>`;
}

function paint(canvas, { width, height, pad, x, y, ax, ay, place, color, shown, chosen, lasso, names, plain }) {
  const ratio = devicePixelRatio || 1, look = getComputedStyle(canvas);
  canvas.width = width * ratio; canvas.height = height * ratio;
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const to = canvas.getContext("2d");
  to.scale(ratio, ratio);
  const ink = look.getPropertyValue("--c-ink"), soft = look.color, point = look.getPropertyValue("--c-point"), mark = look.getPropertyValue("--c-mark");
  const resolved = colour => { to.fillStyle = colour; return to.fillStyle; };
  if (!plain) {
    to.fillStyle = soft; to.font = "11px system-ui, sans-serif"; to.strokeStyle = soft; to.lineWidth = 0.5;
    to.globalAlpha = 1;
    to.textBaseline = "top";
    for (const value of ticksOf(ax)) {
      const px = pad[3] + ax.share(value) * (width - pad[1] - pad[3]);
      to.textAlign = px > width - 24 ? "right" : "center";
      to.fillText(number(value, 4), px, height - pad[2] + 6);
    }
    to.textAlign = "right"; to.textBaseline = "middle";
    for (const value of ticksOf(ay)) {
      const py = height - pad[2] - ay.share(value) * (height - pad[0] - pad[2]);
      to.fillText(number(value, 4), pad[3] - 7, py);
      to.globalAlpha = 0.25; to.beginPath(); to.moveTo(pad[3], py); to.lineTo(width - pad[1], py); to.stroke(); to.globalAlpha = 1;
    }
  }
  const size = (x.length > 20000 ? 1.4 : x.length > 3000 ? 2.2 : 3) + (plain ? 0.6 : 0);
  const base = resolved(point || "#2b5fc0"), strong = resolved(mark || "#d9822b");
  for (const pass of [0, 1]) {
    to.globalAlpha = pass ? (plain ? 0.75 : x.length > 3000 ? 0.45 : 0.7) : 0.07;
    to.fillStyle = base;
    for (let i = 0; i < x.length; i++) {
      if (!Number.isFinite(x[i]) || !Number.isFinite(y[i]) || Boolean(!shown || shown[i]) !== Boolean(pass)) continue;
      const [px, py] = place(i);
      if (color) to.fillStyle = typeof color[i] === "string" ? color[i] : mixed(base, strong, color[i]);
      to.fillRect(px - size / 2, py - size / 2, size, size);
    }
  }
  to.globalAlpha = 1;
  for (const i of chosen || []) {
    if (!Number.isFinite(x[i]) || !Number.isFinite(y[i])) continue;
    const [px, py] = place(i);
    to.beginPath(); to.arc(px, py, 4.5, 0, 7); to.fillStyle = strong; to.fill();
    to.lineWidth = 1.5; to.strokeStyle = ink || "#000"; to.stroke();
  }
  if (lasso) {
    to.beginPath(); lasso.forEach(([px, py], i) => (i ? to.lineTo(px, py) : to.moveTo(px, py)));
    to.closePath(); to.fillStyle = strong; to.globalAlpha = 0.15; to.fill(); to.globalAlpha = 1;
    to.strokeStyle = strong; to.lineWidth = 1.5; to.stroke();
  }
}

function mixed(one, other, share) {
  const part = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  const at = Number.isFinite(share) ? Math.min(Math.max(share, 0), 1) : 0;
  return `rgb(${[0, 1, 2].map(i => Math.round(part(one, i) * (1 - at) + part(other, i) * at)).join(",")})`;
}
