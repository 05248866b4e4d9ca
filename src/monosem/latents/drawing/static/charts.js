// Charts: histograms as SVG.
import { html, number, at, away } from "ui";
import { sign } from "tokens";

// bars: [{low, high, count}]; unit: what lies along the axis; mark: a value to point at; signed: bars above 0 and below have their colours
export function Histogram({ bars, mark, label, unit, logarithmic = false, signed = false, height = 110 }) {
  if (!bars.length) return html`<p class="soft">nothing to draw</p>`;
  const width = 420, most = Math.max(...bars.map(bar => bar.count));
  const scale = logarithmic ? Math.log : value => value;
  const low = scale(bars[0].low), high = scale(bars[bars.length - 1].high);
  const x = value => ((scale(value) - low) / (high - low || 1)) * width;
  const marked = mark && (!logarithmic || mark > 0) ? Math.min(Math.max(x(Math.abs(mark)), 0), width) : null;
  return html`<figure class="chart"><svg viewBox="0 0 ${width} ${height}" role="img" aria-label=${label}
      preserveAspectRatio="none">
    ${bars.map(bar => {
      const left = x(bar.low), size = (bar.count / most) * (height - 2);
      return html`<rect x=${left + 0.5} width=${Math.max(x(bar.high) - left - 1, 0.8)} y=${height - size} height=${size}
        class=${`bar${signed ? sign(bar.low + bar.high) : ""}`}
        onMouseMove=${event => at(event, html`${number(bar.low)} to ${number(bar.high)}: <b>${number(bar.count)}</b> tokens`)}
        onMouseLeave=${away} />`;
    })}
    ${marked !== null && html`<line class="mark" x1=${marked} x2=${marked} y1="0" y2=${height} />`}
  </svg><figcaption><span>${number(bars[0].low)}</span><span>${unit}</span><span>${number(bars[bars.length - 1].high)}</span></figcaption></figure>`;
}
