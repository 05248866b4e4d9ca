"""The table of benchmarks: a row a task."""

from ..dictionaries.evaluation import check_reads_activations
from .absorption import AbsorptionConfig, absorption
from .core import CoreConfig, core, core_each
from .disentanglement import DisentanglementConfig, disentanglement
from .meta_structure import MetaStructureConfig, check_rows, meta_structure
from .removal import check_removable
from .scr import ScrConfig, scr
from .selectivity import SelectivityConfig, selectivity
from .sparse_probing import ProbingConfig, sparse_probing
from .task import Task, check_one_site
from .tpp import TppConfig, tpp

BENCHMARKS: dict[str, Task] = {
    "core": Task(
        "Reconstruction",
        "The share of the activation's variance that the reconstruction explains (higher is better), how many latents "
        "that takes, and how much of the model's loss survives when the reconstruction is spliced in.",
        CoreConfig,
        core,
        minutes=7,
        check=lambda dictionary, config: check_reads_activations(dictionary),
        each=core_each,
        beside={
            "l0": "active latents a token",
            "ce_recovered": "share of the loss recovered",
            "kl": "KL from the clean model in nats, lower is better",
        },
    ),
    "absorption": Task(
        "First-letter absorption",
        "How often the latents of a word's first letter are silent or weak because latents of the single word give "
        "what they should (0 to 1, lower is better; 1 in every word is full replacement).",
        AbsorptionConfig,
        absorption,
        minutes=2,
        check=lambda dictionary, config: check_one_site(dictionary, "absorption"),
    ),
    "sparse_probing": Task(
        "Sparse probing",
        "How well a probe on a few latents tells labelled texts apart (AUROC on texts that it was not fitted on: 0.5 "
        "is chance, 1 perfect). A dictionary is worth having where few latents do better than as many raw dimensions.",
        ProbingConfig,
        sparse_probing,
        minutes=2,
    ),
    "disentanglement": Task(
        "Disentanglement (RAVEL)",
        "How well latents tell attributes of an entity apart (higher is better): the mean of how often a chosen set of "
        "latents changes a city's country, continent or language, and how often it leaves the others alone.",
        DisentanglementConfig,
        disentanglement,
        minutes=2,
        check=lambda dictionary, config: check_one_site(dictionary, "disentanglement"),
    ),
    "selectivity": Task(
        "Selectivity (unlearning)",
        "How much of what the model predicts rightly in one kind of text is lost (0 to 1, higher is better) when "
        "latents of that text alone are turned over, while it keeps 99 % of its right predictions in another.",
        SelectivityConfig,
        selectivity,
        minutes=2,
        check=lambda dictionary, config: check_one_site(dictionary, "selectivity"),
    ),
    "meta_structure": Task(
        "Meta-structure",
        "How much of the decoder's rows a small dictionary of them explains, four directions a row, on rows that it "
        "was not trained on. Beside random rows of the same covariance: latents that are made of other directions.",
        MetaStructureConfig,
        meta_structure,
        minutes=1,
        check=check_rows,
    ),
    "scr": Task(
        "Spurious correlation removal (SCR)",
        "A probe learns a profession where it always comes with one gender, or the other way round. How much of what "
        "it took from the unwanted attribute is lost when the latents of that attribute are ablated, less what is lost "
        "of the wanted one (1: the unwanted one is gone, the wanted one untouched; 0: no difference between them).",
        ScrConfig,
        scr,
        minutes=1,
        check=lambda dictionary, config: check_removable(dictionary),
    ),
    "tpp": Task(
        "Targeted probe perturbation (TPP)",
        "Ablate the latents of one class: how much more accuracy its own probe loses than the probes of other classes "
        "do (higher is better, about 0.5 is perfect, 0 is no selectivity).",
        TppConfig,
        tpp,
        minutes=1,
        check=lambda dictionary, config: check_removable(dictionary),
    ),
}
