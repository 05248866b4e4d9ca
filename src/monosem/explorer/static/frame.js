// A page inside a page: a report, a graph. It has an origin of its own and no stored choice, so it is told the theme.
import { html, useEffect, useMemo, useRef } from "ui";

const chosen = () => document.documentElement.dataset.theme;
export const themed = src => (chosen() ? `${src}?theme=${chosen()}` : src);

export function Frame({ src, title }) {
  const frame = useRef(null), first = useMemo(() => themed(src), [src]); // a new address would forget what one did inside
  useEffect(() => {
    const watch = new MutationObserver(() => frame.current?.contentWindow.postMessage({ theme: chosen() }, "*"));
    watch.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => watch.disconnect();
  }, []);
  return html`<iframe class="framed" ref=${frame} title=${title} sandbox="allow-scripts allow-downloads" src=${first}></iframe>`;
}
