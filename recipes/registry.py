"""Writes src/monosem/assets/published.json.gz, the registry of published dictionaries, from SAELens' list of releases.

    python recipes/registry.py .venv-bench/lib/python3.11/site-packages/sae_lens/pretrained_saes.yaml

SAELens (MIT) says which repositories hold which dictionaries. What is added here: the site that each one reads, in
monosem's names; its width, where a name states it; releases that SAELens does not list (`MORE`); and corrections of
what SAELens has wrong (`Corrections`). The last line that is printed counts them.
"""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[1] / "src" / "monosem" / "assets" / "published.json.gz"

# SAELens' conversion -> layout: which files a dictionary has (`monosem.dictionaries.published.hub.FILES`)
LAYOUTS = {
    None: "saelens",
    "gemma_2": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "gemma_3": "gemma_scope_2",
    "dictionary_learning_1": "dictionary_learning",
    "qwen_scope": "file",
    "goodfire": "file",
    "deepseek_r1": "file",
    "connor_rob_hook_z": "file_with_cfg",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "llamascopium",
    "mwhanna_transcoder": "circuit_tracer_layer",
    "mntss_clt_layer_transcoder": "circuit_tracer_clt_layer",
    "temporal": "temporal",
}
# names of TransformerLens -> ids of the hub
MODELS = {
    "gpt2-small": "gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    **{name: f"google/{name}" for name in ("gemma-2b", "gemma-2b-it")},
    **{f"gemma-2-{size}": f"google/gemma-2-{size}" for size in ("2b", "9b", "9b-it", "27b")},
    **{f"qwen3-{size}b": f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "4", "8", "14")},
}
HOOKS = {"hook_z": "z", "attn.hook_z": "z"}  # others are the site's name behind hook_
GEMMA_SCOPE = {"res": "resid_post", "mlp": "mlp_out", "att": "z", "transcoders": "ln2_normalized"}
# by folder; SAELens gives transcoders hook_mlp_in, before the norm, and attn_out a z that is not flattened
GEMMA_SCOPE_2 = {"resid_post": "resid_post", "attn_out": "z", "mlp_out": "mlp_out", "transcoder": "ln2_output"}
LLAMA_SCOPE = {"R": "resid_post", "A": "attn_out", "M": "mlp_out"}
WIDTHS = {"4k": 2**12, "16k": 2**14, "32k": 2**15, "65k": 2**16, "128k": 2**17, "131k": 2**17}
WIDTHS |= {"262k": 2**18, "524k": 2**19, "1m": 2**20}
# of releases whose names do not state it. gpt2-small-res-jb: its files, and the names of the originals on the hub
RELEASE_WIDTHS = {
    "gpt2-small-res-jb": 24576,
    "goodfire-llama-3.3-70b-instruct": 65536,
    "goodfire-llama-3.1-8b-instruct": 65536,
    "deepseek-r1-distill-llama-8b-qresearch": 65536,
    "llama_scope_r1_distill": 32768,
    **{f"llama_scope_lx{place}_{times}x": 4096 * times for place in "amr" for times in (8, 32)},
}
KEPT = ("model_from_pretrained_kwargs", "normalize_activations")  # of config_overrides: what changes the codes

_LLAMA = [f"layers.{layer}.mlp" for layer in range(16)]
_MLP = {"layout": "sparsify", "site": "mlp_input", "site_out": "mlp_raw"}
_CLT = {"layout": "circuit_tracer_clt", "ids": [""]}  # where they read stands in their config.yaml
# repositories that circuit-tracer's and sparsify's own pages name, with the folders that the hub lists there
MORE: list[dict[str, Any]] = [
    {"repo": "EleutherAI/skip-transcoder-Llama-3.2-1B-131k", "model": "meta-llama/Llama-3.2-1B", "ids": _LLAMA}
    | _MLP
    | {"width": 2**17},
    {"repo": "EleutherAI/Llama-3.2-1B-mntss-skip-transcoder", "model": "meta-llama/Llama-3.2-1B", "ids": _LLAMA} | _MLP,
    {
        "repo": "EleutherAI/sae-llama-3-8b-32x-v2",
        "model": "meta-llama/Meta-Llama-3-8B",
        "layout": "sparsify",
        "site": "resid_post",
        "width": 2**17,
        "ids": [f"layers.{layer}" for layer in (*range(1, 23, 2), 23, 24, 25, 27, 29)],
    },
    {"repo": "EleutherAI/sae-Llama-3.2-1B-131k", "model": "meta-llama/Llama-3.2-1B", "ids": _LLAMA}
    | {"layout": "sparsify", "site": "mlp_raw", "width": 2**17},
    {"repo": "mntss/transcoder-Llama-3.2-1B", "model": "meta-llama/Llama-3.2-1B", "layout": "circuit_tracer_layer"}
    | {"ids": [f"layer_{layer}.safetensors" for layer in range(16)]},  # where they read stands in their config.yaml
    {"repo": "mntss/clt-gemma-2-2b-426k", "model": "google/gemma-2-2b", "width": 2**14}
    | {"site": "resid_mid", "site_out": "mlp_out"}
    | _CLT,
    {"repo": "mntss/clt-gemma-2-2b-2.5M", "model": "google/gemma-2-2b"} | _CLT,
    {"repo": "mntss/clt-llama-3.2-1b-524k", "model": "meta-llama/Llama-3.2-1B"} | _CLT,
    {"repo": "mntss/clt-131k", "model": "openai/gpt-oss-20b"} | _CLT,
]


class Corrections:
    """What SAELens' list has wrong, put right and counted."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def model(self, release: str, model: str) -> str:
        """The instruction-tuned 9B's dictionaries are listed under the base model."""
        if release == "gemma-scope-9b-it-res" and model == "gemma-2-9b":
            self.made.append(f"{release}: model {model}")
            return "gemma-2-9b-it"
        return model

    def sae(self, release: str, sae: dict[str, Any], layer: int | None) -> None:
        """An L0 other than the folder's; a Neuronpedia id of another layer (of the next one at the last resid_post)."""
        measured = re.search(r"average_l0_(\d+)", str(sae["path"]))
        if measured:
            if sae.get("l0") not in (None, int(measured[1])):
                self.made.append(f"{release}/{sae['id']}: l0 {sae['l0']} of {sae['path']}")
            sae["l0"] = int(measured[1])
        said = re.search(r"/(\d+|e)-", sae.get("neuronpedia") or "")
        place = "e" if "embedding" in str(sae["path"]) or str(sae["path"]).startswith("e-") else str(layer)
        after = sae["id"].endswith("hook_resid_post") and said and said[1] == str((layer or 0) + 1)
        if said and ((said[1] != place and not after) or said[1] == "e"):  # the embedding's is called att
            self.made.append(f"{release}/{sae['id']}: neuronpedia {sae['neuronpedia']}")
            del sae["neuronpedia"]


def site_of(conversion: str | None, repo: str, sae: dict[str, Any]) -> tuple[str, int | None]:
    """The name of the site that a dictionary reads, and its layer."""
    path, name = str(sae["path"]), sae["id"]
    numbers = re.search(r"(?:layers?[._]?|blocks\.|-l|/L|Base-L)(\d+)", f"{name} {path} /{name}")
    layer = int(numbers[1]) if numbers else None
    if conversion in ("gemma_2", "gemma_2_transcoder"):
        kind = repo.rpartition("-")[2]
        return ("embed", None) if path.startswith("embedding") else (GEMMA_SCOPE[kind], layer)
    if conversion == "gemma_3":
        return GEMMA_SCOPE_2[path.partition("/")[0].removesuffix("_all")], layer
    if conversion == "llama_scope":
        found = re.search(r"-L(\d+)([RAM])-", path)
        assert found
        return LLAMA_SCOPE[found[2]], int(found[1])
    if conversion == "mwhanna_transcoder":
        return "mlp_input", layer
    if conversion == "mntss_clt_layer_transcoder":
        return "resid_mid", layer
    if hook := re.match(r"blocks\.(\d+)\.(hook_[a-z_]+?)(?:_\d+|__\w+)?$", name):
        return HOOKS.get(hook[2], hook[2].removeprefix("hook_")), int(hook[1])
    if conversion in ("qwen_scope", "goodfire", "deepseek_r1", "llama_scope_r1_distill", "dictionary_learning_1"):
        return "resid_post", layer
    raise ValueError(f"no site: {conversion} {repo} {sae}")


def site_out(conversion: str | None, site: str) -> str | None:
    """Where a transcoder writes; None for others."""
    transcoder = conversion in ("gemma_2_transcoder", "mwhanna_transcoder", "mntss_clt_layer_transcoder")
    return "mlp_out" if transcoder or site == "ln2_output" else None


def width_of(release: str, repo: str, sae: dict[str, Any]) -> int | None:
    """Number of latents, where a name states it."""
    if release in RELEASE_WIDTHS:
        return RELEASE_WIDTHS[release]
    text = " ".join([release, repo, str(sae["path"]), sae["id"], sae.get("neuronpedia") or ""])
    if power := re.search(r"width-2pow(\d+)", text):
        return int(2 ** int(power[1]))
    if named := re.search(r"(?:width_|v5-|-w-|res-)(\d+[km])(?![a-z0-9])", text):
        return WIDTHS[named[1]]
    if qwen := re.search(r"-W(\d+)K-L0", repo):
        return 1024 * int(qwen[1])
    plain = re.search(r"_ds(\d+)_|hook_\w+_(\d{3,6})(?:$|[_: ])", text)
    return int(plain[1] or plain[2]) if plain else None


def released(release: str, value: dict[str, Any], corrections: Corrections) -> dict[str, Any]:
    """One release: what all of its dictionaries share, and columns of what they differ in."""
    conversion, repo = value.get("conversion_func"), value["repo_id"]
    model = corrections.model(release, value["model"])
    rows = []
    for sae in value["saes"]:
        site, layer = site_of(conversion, repo, sae)
        corrections.sae(release, sae, layer)
        rows.append(
            {
                "ids": sae["id"],
                "paths": str(sae["path"]),
                "sites": site,
                "outs": site_out(conversion, site),
                "layers": layer,
                "widths": width_of(release, repo, sae),
                "l0": sae.get("l0"),
                "neuronpedia": sae.get("neuronpedia"),
                "scales": sae.get("norm_scaling_factor"),
            }
        )
    kept = {key: one for key, one in (value.get("config_overrides") or {}).items() if key in KEPT}
    head = {"release": release, "repo": repo, "model": MODELS.get(model, model), "layout": LAYOUTS[conversion]}
    return head | ({"overrides": kept} if kept else {}) | columns(rows)


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Column -> its values, or the one value that all rows have; without columns of nothing, and paths that are ids."""
    table = {name: [row[name] for row in rows] for name in rows[0]}
    if table["paths"] == table["ids"]:
        del table["paths"]
    short = {name: one if len(set(map(str, one))) > 1 or name == "ids" else one[0] for name, one in table.items()}
    return {name: one for name, one in short.items() if one is not None}


def more() -> Iterator[dict[str, Any]]:
    for one in MORE:
        rows = []
        for name in one["ids"]:
            found = re.search(r"layers?[._](\d+)", name)
            layer = int(found[1]) if found else None
            row = {"ids": name, "sites": one.get("site"), "outs": one.get("site_out"), "layers": layer}
            rows.append(row | {"paths": name, "widths": one.get("width")})
        head = {"release": one["repo"]} | {key: one[key] for key in ("repo", "model", "layout")}
        yield head | columns(rows)


def main(source: Path) -> None:
    listed = yaml.load(source.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    corrections = Corrections()
    releases = [released(name, value, corrections) for name, value in listed.items()] + list(more())
    releases.sort(key=lambda one: (one["model"].rpartition("/")[2].lower(), one["release"]))
    version = next(iter(source.parents[1].glob("sae_lens-*.dist-info")), Path("sae_lens-unknown")).stem
    text = json.dumps({"source": version, "releases": releases}, separators=(",", ":"))
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    for line in corrections.made:
        print(f"corrected: {line}")
    count = sum(len(one["ids"]) for one in releases)
    print(f"{count} dictionaries in {len(releases)} releases, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
