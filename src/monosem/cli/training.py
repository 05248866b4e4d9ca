"""`monosem train` and `monosem evaluate`: make a dictionary from text, and measure it on other text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BadInput
from ..terminal import notice
from .application import resumable
from .options import (
    MODELS,
    MOST_SKIPPED,
    TEXTS,
    Context,
    Corpus,
    Device,
    Dtype,
    OnDictionary,
    Quiet,
    Set,
    TextField,
    TokenLimit,
    Trust,
    argument,
    fields,
    flag,
    option,
)
from .output import as_json, frame, line

if TYPE_CHECKING:
    from ..dictionaries.training.config import AnyConfig

Config = Annotated[Path | None, argument("[CONFIG]", "The config.yaml of a run; options win over it.")]


@dataclass(frozen=True)
class Training:
    """The fields of the config that are set most; `None` leaves a field as the file or the default has it."""

    model: Annotated[str | None, option("MODEL", f"The model: {MODELS}.")] = None
    site: Annotated[
        str | None, option("SITE", "Where it reads, such as resid_post.15; several: resid_post.5,10-12.")
    ] = None
    site_out: Annotated[
        str | None, option("SITE", "Where a transcoder's output belongs, such as mlp_out.15 or mlp_out.0-5.")
    ] = None
    second_model: Annotated[
        str | None, option("MODEL", "A second model, whose sites are second:resid_post.15: a crosscoder of both.")
    ] = None
    loss: Annotated[
        str | None,
        option("LOSS", "reconstruction (default), or end to end: ce or kl of the rest of the model."),
    ] = None
    later_sites: Annotated[
        str | None, option("SITE", "End to end: places behind it that should stay as they are, too.")
    ] = None
    skip_connection: Annotated[
        bool | None, flag("A transcoder's input also adds to its output.", "--skip-connection/--no-skip-connection")
    ] = None
    text: Annotated[list[Path] | None, option("PATH", TEXTS)] = None
    field: TextField = None
    most_skipped: Annotated[float | None, option("SHARE", MOST_SKIPPED, min=0, max=1)] = None
    width: Annotated[int | None, option("N", "Number of latents.")] = None
    k: Annotated[int | None, option("N", "Active latents a token.", "-k")] = None
    tokens: Annotated[int | None, option("N", "Tokens to train on; a shorter text is read repeatedly.")] = None
    kind: Annotated[str | None, option("KIND", "How latents are chosen, see above (default: topk).")] = None
    sparsity: Annotated[float | None, option("X", "Weight of the penalty of relu, gated and jumprelu.")] = None
    target_l0: Annotated[float | None, option("N", "Active latents a token that jumprelu aims at.")] = None
    context: Annotated[int | None, option("N", "Tokens a window (default: 256).")] = None
    apart: Annotated[
        bool | None, flag("No window holds two documents; short ones are filled up.", "--apart/--no-apart")
    ] = None
    batch_tokens: Annotated[int | None, option("N", "Tokens a step (default: 4096).")] = None
    buffer_tokens: Annotated[int | None, option("N", "Tokens that are shuffled together.")] = None
    lr: Annotated[float | None, option("X", "Peak learning rate (default: by width, batch, steps and --start).")] = None
    seed: Annotated[int | None, option("N", "Seed of everything random (default: 0).")] = None
    start: Annotated[str | None, option("DICTIONARY", "Start from its weights; DIR of a finished run trains on.")] = (
        None
    )
    meta_of: Annotated[
        str | None, option("DICTIONARY", "Train on its decoder rows instead of activations: a meta-SAE.")
    ] = None
    dictionary: Annotated[
        list[str] | None,
        option("'NAME KEY=VALUE ...'", "One of several from one pass of the model, with fields of its own; repeat it."),
    ] = None
    device: Device = None
    dtype: Dtype = None
    set: Set = None

    def config(self, file: Path | None) -> "AnyConfig":
        """The file, with the options over it. Raises `BadInput` or `BadFile` for what a config cannot hold."""
        from ..dictionaries.training.config import config_of, read_config
        from ..dictionaries.training.settings import DictionarySettings

        others = ("text", "set", "dictionary")
        options: dict[str, Any] = {name: value for name, value in vars(self).items() if name not in others}
        options["texts"] = [str(path) for path in self.text] if self.text else None
        options["dictionaries"] = _named(self.dictionary) if self.dictionary else None
        chosen = {name: value for name, value in options.items() if value is not None} | fields(self.set)
        held = read_config(file).model_dump() if file else {}
        if "dictionaries" in held and "dictionaries" not in chosen:  # of each dictionary, options win as well
            own = {name: value for name, value in chosen.items() if name in DictionarySettings.model_fields}
            held["dictionaries"] = {name: entry | own for name, entry in held["dictionaries"].items()}
        return config_of(held | chosen)


def _named(given: list[str]) -> dict[str, dict[str, Any]]:
    """["wide width=8192 k=64"] -> {"wide": {"width": 8192, "k": 64}}

    Raises:
        BadInput: no name, one name twice, or what is no field.
    """
    found: dict[str, dict[str, Any]] = {}
    for words in given:
        name, *entries = words.split() or [""]
        if not name or "=" in name or name in found:
            raise BadInput(f"--dictionary {words!r}: begin with a name of its own, such as 'wide width=8192'")
        found[name] = fields(entries, f"--dictionary {name}:")
    return found


def train(
    out: Annotated[Path, option("DIR", "Folder of the run; the result is DIR/dictionary.")],
    training: Training,
    config: Config = None,
    trust_remote_code: Trust = False,
    resume: Annotated[bool, flag("Go on with the run that DIR holds, or refuse it.", "--resume/--no-resume")] = True,
    quiet: Quiet = False,
) -> None:
    """Train a sparse dictionary on a model's activations.

    Special tokens, first positions and outliers are left out and counted. Interrupted (also killed), the same command
    goes on where it stopped, with the same result. DIR gets config.yaml, metrics.jsonl, checkpoints and the dictionary,
    which is there from the first checkpoint on; of several dictionaries, DIR/NAME gets the metrics and the dictionary.
    A result that is none (FVE below 0, most latents dead, a file that is not what was trained) is saved as unfinished,
    and the command fails.

    What it is follows from the sites. One --site: an SAE; with --site-out: a transcoder. Several sites in --site: a
    crosscoder, one code for layers (resid_post.5,10,15) or for two models (resid_post.15,second:resid_post.15 with
    --second-model). Layers from 0 on in both (mlp_input.0-5, mlp_out.0-5): a cross-layer transcoder. --loss kl or ce
    trains an SAE or transcoder end to end, through the rest of the model. Kinds (more in docs/training.md):

    topk: exactly k latents a token; the safe first choice.

    batchtopk: k latents a token in the mean, more where a token needs them; a better fit at the same k.

    matryoshka: as batchtopk, and the first latents rebuild alone: general latents first, special ones later.

    abstopk: as topk, with negative codes: a latent and its opposite are one.

    jumprelu: a threshold for each latent, learned for the number of active latents that --target-l0 asks for.

    gated: as relu, with codes that are not shrunk; twice the work of relu.

    relu: the oldest and simplest, with codes that are shrunk; for comparison with older work.

    matching_pursuit: latents found one after the other, for correlated or nested features; k times the work of topk.

    Example: monosem train --model smollm2 --site resid_post.15 --text books/ --width 4608 -k 32 --tokens 5000000 --out
    runs/sae

    Example: monosem train runs/sae/config.yaml --seed 1 --set auxk=256 --out runs/second

    Example: monosem train --model smollm2 --site mlp_input.0-5 --site-out mlp_out.0-5 --kind batchtopk --text books/
    --width 2048 -k 16 --tokens 5000000 --out runs/clt

    Example: monosem train runs/sae/config.yaml --dictionary 'small width=1024' --dictionary 'late site=resid_post.25'
    --out runs/two
    """
    from ..dictionaries.training.job import train_each

    settings = training.config(config)
    with resumable(out):
        trained = train_each(settings, folder=out, trust_remote_code=trust_remote_code, resume=resume, quiet=quiet)
    for name, dictionary in trained.items():
        folder = out / name / "dictionary"
        if not quiet:
            notice(f"{dictionary}\nmeasure it on other text: monosem evaluate {folder} --text PATH")
        line(folder)


def evaluate(
    asked: OnDictionary,
    corpus: Corpus,
    tokens: TokenLimit = 100_000,
    context: Context = 256,
    save: Annotated[Path | None, option("FILE", "Write everything as JSON, with the config.")] = None,
) -> None:
    """Measure a dictionary on text it was not trained on.

    Sparsity, explained variance, dead latents, and what splicing it into the model costs (loss, KL).

    Example: monosem evaluate smollm2/resid_post.15 --text held-out.txt --tokens 50000
    """
    from ..dictionaries import evaluate as measure
    from ..files import check_writable

    if save:
        check_writable(save)
    sae, lm = asked.load()
    documents = corpus.documents(lm, quiet=asked.silent)
    evaluation = measure(lm, sae, documents, tokens=tokens, context=context, quiet=asked.silent)
    if save:
        evaluation.save(save)
    if asked.json:
        as_json(evaluation.to_dict())
    else:
        left_out = sum(evaluation.skipped.values())
        frame(evaluation.table, f"{asked.dictionary} on {evaluation.tokens:,} tokens ({left_out:,} left out)")
