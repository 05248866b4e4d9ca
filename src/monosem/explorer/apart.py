"""Pages that somebody else's script draws: shown in a frame with no cookie and no requests, in the app's colours."""

import re

from starlette.responses import HTMLResponse

POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
# the theme that the address names, and each one that the app around it sends
THEME = """<script>{
  const see = theme => { if (theme === "light" || theme === "dark") {
    const { dataset, style } = document.documentElement; dataset.theme = style.colorScheme = theme; } };
  see(new URLSearchParams(location.search).get("theme"));
  addEventListener("message", ({ data, source }) => { if (source === parent) see(data?.theme); });
}</script>"""
_BEGIN = re.compile(
    r"\ufeff?(\s|<!--.*?-->)*(<!doctype[^>]*>)?\s*(<html[^>]*>)?\s*(<head[^>]*>)?", re.IGNORECASE | re.DOTALL
)


def apart(page: str) -> HTMLResponse:
    """A page as the answer to a request; what is put into it stands behind its doctype, as a browser wants it."""
    found = _BEGIN.match(page)
    at = found.end() if found else 0
    return HTMLResponse(page[:at] + THEME + page[at:], headers={"content-security-policy": POLICY})
