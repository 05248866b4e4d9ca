"""`benchmark`: what is kept, what is measured again, and what the report says."""

import importlib
import json
from dataclasses import replace

import pytest

from monosem.benchmarks import BENCHMARKS, DICTIONARY, BenchmarkReport, CoreConfig, benchmark, core
from monosem.benchmarks.report import figures, frontier, write
from monosem.benchmarks.task import ALL, RANDOM, RAW, Score, Scores, compared
from monosem.errors import BadInput, Mismatch, UnknownName
from monosem.statistics import Interval
from tiny import tiny_model
from tiny_dictionaries import random_tensors, tiny_dictionary

job = importlib.import_module("monosem.benchmarks.job")
SETTINGS = {"core": {"tokens": 1000, "context": 32}, "sparse_probing": {"sets": ["facts"], "most": 100, "draws": 20}}
TASKS = ("core", "sparse_probing")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", name="tiny")


@pytest.fixture(scope="module")
def pair():
    weights = [random_tensors(seed=seed, scales=(0.2, 0.1)) for seed in (3, 4)]
    return {f"sae/{n}": tiny_dictionary(tensors=one, name=str(n)) for n, one in enumerate(weights)}


@pytest.fixture(scope="module")
def done(model, pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    return benchmark(model, pair, folder=folder, tasks=TASKS, settings=SETTINGS, quiet=True)


def test_the_report_holds_every_dictionary_task_and_interval(done, pair):
    page, text = (done.folder / "report.html").read_text(), (done.folder / "report.md").read_text()
    results = json.loads((done.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(done.results))
    for called in pair:
        assert called in page
        assert f"`{called}`" in text
        for name in TASKS:
            value, low, high = done.scores[called][name].headline[DICTIONARY]
            shown = f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
            assert shown in page, name
            assert shown in text, name
    for name in TASKS:
        assert BENCHMARKS[name].title in page
    assert "https://" not in page.split("<main>")[1].split("</main>")[0]
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            assert line.count("|") == lines[number - 1].count("|") == lines[number + 1].count("|")
    assert len(done.table) == 2 * 2 * 3
    for called in pair:  # what stands beside the main number, in tables of its own
        recovered, _, _ = (rows := done.scores[called]["core"].table.set_index(["arm", "measure"])).loc[
            (DICTIONARY, "ce_recovered"), ["value", "low", "high"]
        ]
        assert f"{recovered:.3f} [".replace("-", "−") in text.split("ce_recovered: share")[1].split("kl: KL")[0]
        assert rows.loc[(RAW, "l0"), "value"] > 0
    drawn = {trace.name: trace for trace in done.plot().data if trace.name}
    assert set(drawn) == {*pair, RANDOM}
    for number, called in enumerate(pair):
        rows = done.scores[called]["core"].table.set_index(["arm", "measure"])["value"]
        assert (drawn[called].x[0], drawn[called].y[0]) == (rows[DICTIONARY, "l0"], rows[DICTIONARY, "fve"])
        edge = drawn[RANDOM].marker.symbol[number] == "triangle-down"
        assert drawn[RANDOM].x[number] == rows[RANDOM, "l0"]
        assert (
            (drawn[RANDOM].y[number] > rows[RANDOM, "fve"]) if edge else drawn[RANDOM].y[number] == rows[RANDOM, "fve"]
        )
    assert len({drawn[called].marker.color for called in pair} | {drawn[RANDOM].marker.color}) == 3
    with pytest.raises(UnknownName, match="no figure"):
        done.plot("pareto")


def test_what_was_measured_is_kept_and_only_the_rest_is_measured(model, pair, done, monkeypatch, tmp_path):
    calls = []

    def noted(*args, **options):
        calls.append(args[1].name)
        return core(*args, **options)

    monkeypatch.setitem(BENCHMARKS, "core", BENCHMARKS["core"].__class__(**{**vars(BENCHMARKS["core"]), "run": noted}))
    options = {"settings": SETTINGS, "quiet": True}
    again = benchmark(model, pair, folder=done.folder, tasks=TASKS, **options)
    assert calls == []
    assert again.table.equals(done.table)
    one, other = pair
    first = benchmark(model, {one: pair[one]}, folder=tmp_path, tasks=["core"], **options)
    assert calls == ["0"]
    both = benchmark(model, pair, folder=tmp_path, tasks=["core"], **options)
    assert calls == ["0", "1"]
    assert both.scores[one]["core"].headline == first.scores[one]["core"].headline
    more = {"core": SETTINGS["core"] | {"tokens": 1500}, "sparse_probing": SETTINGS["sparse_probing"] | {"most": 120}}
    others = benchmark(model, {one: pair[one]}, folder=tmp_path, tasks=TASKS, settings=more, quiet=True)
    assert others.results["scores"][one]["core"]["config"]["tokens"] == 1500
    assert calls.pop() == "0"  # with other settings it is measured again, and the folder takes it
    benchmark(model, {one: pair[other]}, folder=tmp_path, tasks=["core"], **options)  # another one of the same name
    assert calls == ["0", "1", "1"]
    fresh = benchmark(model, pair, folder=tmp_path, tasks=["core"], fresh=True, **options)
    assert len(calls) == 3  # two of one site, measured at once
    for called in pair:
        assert fresh.scores[called]["core"].table.equals(done.scores[called]["core"].table)


def test_a_dictionary_that_a_task_refuses_leaves_the_others_of_its_site_in(model, pair, tmp_path, monkeypatch):
    class Small(CoreConfig):
        tokens: int = 1000
        context: int = 32

    rows = tiny_dictionary(tensors=random_tensors(), metadata={"meta_of": "sae/0"})
    monkeypatch.setattr(job, "BENCHMARKS", {"core": replace(BENCHMARKS["core"], config=Small)})
    done = benchmark(model, {**pair, "rows": rows}, folder=tmp_path, tasks=["core"], quiet=True)  # also where asked for
    assert {called: set(scores) for called, scores in done.scores.items()} == {
        **{called: {"core"} for called in pair},
        "rows": set(),
    }
    assert done.results["left_out"] == [
        f"rows, core: {rows.name} codes the decoder rows of sae/0, not activations; its card says how well it does so"
    ]


def test_tasks_that_are_not_defined_for_a_dictionary_are_left_out_unless_only_they_were_asked_for(
    model, pair, tmp_path, monkeypatch
):
    transcoder = tiny_dictionary("relu", site="mlp_in.1", site_out="mlp_out.1")
    monkeypatch.setattr(job, "BENCHMARKS", {name: BENCHMARKS[name] for name in ("core", "scr")})
    settings = {"core": SETTINGS["core"]}
    done = benchmark(model, {"t": transcoder}, folder=tmp_path / "all", settings=settings, quiet=True)
    assert set(done.scores["t"]) == {"core"}
    assert "needs a dictionary that reads and writes at one site" in done.results["left_out"][0]
    assert "needs a dictionary that reads and writes at one site" in (done.folder / "report.md").read_text()
    assert "needs a dictionary that reads and writes at one site" in done.html.read_text()


def test_a_task_that_was_asked_for_and_no_dictionary_has_is_refused_before_any_other_runs(model, tmp_path, monkeypatch):
    called = []
    never = {name: replace(task, run=called.append, each=None) for name, task in BENCHMARKS.items()}
    monkeypatch.setattr(job, "BENCHMARKS", never)
    tensors = random_tensors(scales=(0.2, 0.1))
    transcoders = {
        n: tiny_dictionary("relu", tensors, site="mlp_in.1", site_out="mlp_out.1", name=n) for n in ("t", "u")
    }
    rows = {n: tiny_dictionary(tensors=tensors, metadata={"meta_of": "sae/0"}) for n in ("m", "n")}
    normed = {n: tiny_dictionary(tensors=tensors, token_norm="layer_norm") for n in ("l", "o")}
    undefined = {
        "absorption": (transcoders, "absorption needs a dictionary that reads and writes at one site"),
        "disentanglement": (transcoders, "disentanglement needs a dictionary that reads and writes at one site"),
        "selectivity": (transcoders, "selectivity needs a dictionary that reads and writes at one site"),
        "scr": (transcoders, "needs a dictionary that reads and writes at one site"),
        "tpp": (normed, "normalises each token"),
        "core": (rows, "codes the decoder rows of sae/0"),
        "meta_structure": (transcoders, "a decoder of 24 rows is too small"),
    }
    for name, (dictionaries, why) in undefined.items():
        for some, whose in ((dictionaries, "any of the dictionaries"), (dict([*dictionaries.items()][:1]), "it")):
            for asked in ({"tasks": ["sparse_probing", name]}, {"settings": {name: {"seed": 1}}}):
                with pytest.raises(BadInput, match=f"^{name} is not defined for {whose}: .*{why}") as raised:
                    benchmark(model, some, folder=tmp_path / "new", quiet=True, **asked)
                assert "\n" not in str(raised.value)
    assert called == []
    assert not (tmp_path / "new").exists()


def test_bad_input(model, pair, tmp_path):
    options = {"folder": tmp_path / "new", "quiet": True}
    with pytest.raises(UnknownName, match="no benchmark 'cor'; did you mean 'core'"):
        benchmark(model, pair, tasks=["cor"], **options)
    with pytest.raises(BadInput, match="settings of core: token: no such field; did you mean 'tokens'"):
        benchmark(model, pair, tasks=["core"], settings={"core": {"token": 5}}, **options)
    with pytest.raises(BadInput, match="at least one dictionary"):
        benchmark(model, {}, **options)
    with pytest.raises(Mismatch):
        benchmark(model, {"other": tiny_dictionary(model_name="gpt2")}, **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_model_is_refused(pair, done):
    other = tiny_model("llama", name="tiny", seed=5)
    with pytest.raises(Mismatch, match="other settings"):
        benchmark(other, pair, folder=done.folder, tasks=["core"], settings=SETTINGS, quiet=True)


def test_the_frontier_has_what_no_other_beats_in_both():
    points = [(32, 0.8), (64, 0.7), (16, 0.5), (64, 0.9), (128, 0.9)]
    assert frontier(points) == [(16, 0.5), (32, 0.8), (64, 0.9)]


def test_several_dictionaries_have_a_colour_each_and_arms_a_dash_each():
    def scores(shift, arms, n=None):
        rows = [
            Score(arm, ALL, "m", k, Interval(i + (k or 0) + shift, i + (k or 0) + shift - 1, i + (k or 0) + shift + 2))
            for i, arm in enumerate(arms)
            for k in ([None] if n is None else [1, n])
        ]
        return Scores.of("t", rows, "m", n)

    arms = (DICTIONARY, RANDOM, "another baseline")
    lines = compared({"a": scores(0, arms, 5), "b": scores(10, arms, 5)}).data
    curves = [trace for trace in lines if trace.x[0] is not None]
    assert [tuple(trace.y) for trace in curves] == [(1, 5), (2, 6), (3, 7), (11, 15), (12, 16), (13, 17)]
    assert len({(trace.line.color, trace.line.dash) for trace in curves}) == 6
    assert len({trace.line.color for trace in curves}) == 2
    assert [trace.legendgroup for trace in curves] == ["a"] * 3 + ["b"] * 3  # a click hides one dictionary
    assert [trace.name for trace in lines if trace.showlegend is not False] == ["a", "b", RANDOM, "another baseline"]
    bars = compared({"a": scores(0, arms), "b": scores(10, arms)}).data
    assert [(trace.x[0], trace.name, trace.y[0]) for trace in bars] == [
        (called, arm, shift + i) for called, shift in (("a", 0), ("b", 10)) for i, arm in enumerate(arms)
    ]
    assert {(trace.error_y.array[0], trace.error_y.arrayminus[0]) for trace in bars} == {(2, 1)}
    assert len({(trace.name, trace.offsetgroup) for trace in bars}) == 3  # side by side, not each in a slot of its own
    assert [trace.line.dash for trace in scores(0, arms, 5).plot().data] == ["solid", "dash", "dot"]


def test_more_dictionaries_of_one_site_than_colours_stay_apart_in_every_figure_and_table(tmp_path):
    def probing(value):
        rows = [
            Score(arm, ALL, "auroc", k, Interval(value, value, value)) for arm in (DICTIONARY, RANDOM) for k in (1, 5)
        ]
        return Scores.of("sparse_probing", rows, "auroc", 5)

    names = [f"runs/{n}/dictionary" for n in range(12)]
    both = {
        called: {
            "core": made_up(0.5 + n / 100, 0.1, "", 1000, "resid_post.1").to_dict(),
            "sparse_probing": probing(0.5 + n / 100).to_dict(),
        }
        for n, called in enumerate(names)
    }
    results = {"config": {}, "origin": {"model": "tiny"}, "scores": both, "left_out": []}
    for name in ("pareto_fve", "pareto_ce_recovered", "sparse_probing"):
        drawn = {t.name: t for t in figures(results)[name][0].data if t.name in names}
        assert list(drawn) == names
        assert len({(trace.marker.color or trace.line.color, trace.marker.symbol) for trace in drawn.values()}) == 12
        assert [trace.y[-1] for trace in drawn.values()] == [0.5 + n / 100 for n in range(12)]
    write(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for n, called in enumerate(names):
        assert f"| `{called}` | {0.5 + n / 100:.3f} [" in text
        assert f"All numbers of `{called}`" in text


def test_the_baselines_of_a_table_are_those_of_its_task(tmp_path):
    rows = [Score(arm, ALL, "m", None, Interval(v, v, v)) for arm, v in ((DICTIONARY, 0.5), ("same covariance", 0.125))]
    scores = {"meta_structure": Scores.of("meta_structure", rows, "m").to_dict()}
    write({"origin": {"model": "tiny"}, "scores": {"a": scores}, "left_out": []}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| m | dictionary | same covariance |\n|---|---|---|\n| `a` | 0.500 [0.500, 0.500] | 0.125 [" in text
    assert "raw dimensions |" not in text


def test_a_task_that_measured_nothing_has_no_figure_and_says_why(tmp_path):
    nan = float("nan")
    rows = [Score(arm, ALL, "fraction", None, Interval(nan, nan, nan)) for arm in (DICTIONARY, RANDOM)]
    nothing = Scores.of("absorption", rows, "fraction", notes=["tiny cannot spell."])
    known = [Score(arm, ALL, "m", None, Interval(0.5, 0.25, 0.75)) for arm in (DICTIONARY, RANDOM)]
    scores = {"absorption": nothing.to_dict(), "meta_structure": Scores.of("meta_structure", known, "m").to_dict()}
    write({"origin": {"model": "tiny"}, "scores": {"a": scores}, "left_out": []}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert 'id="plot-meta_structure"' in page
    assert 'id="plot-absorption"' not in page
    for name in ("report.html", "report.md"):
        assert "tiny cannot spell." in (tmp_path / name).read_text()


def test_the_result_has_its_settings(done):
    assert isinstance(done, BenchmarkReport)
    assert done.config["settings"] == json.loads(json.dumps(SETTINGS))
    assert done.html.exists()


def made_up(fve: float, random: float, note: str, tokens: int, site: str) -> Scores:
    rows = [
        Score(arm, ALL, measure, None, Interval(value, value - 0.01, value + 0.01))
        for arm, base in ((DICTIONARY, fve), (RANDOM, random), (RAW, 1.0))
        for measure, value in (("fve", base), ("l0", 30.0), ("ce_recovered", base), ("kl", 0.1))
    ]
    times = {"seconds": 12.0, "processor_seconds": 3.0}
    return Scores.of("core", rows, "fve", notes=["for all", note], tokens=tokens, site=site, **times)


def test_a_report_says_whose_settings_and_notes_are_whose_and_what_is_apart_from_baselines(tmp_path):
    origin = {"model": "tiny", "monosem": "0"}
    both = {"a": made_up(0.8, 0.3, "of a", 1000, "z.0"), "b": made_up(0.7, 0.7, "of b", 2000, "z.1")}
    scores = {called: {"core": one.to_dict()} for called, one in both.items()}
    results = {"config": {}, "origin": origin, "scores": scores, "left_out": []}
    write(results, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    overview = text.split("The main number of each task")[0]
    assert "| `a` | **0.800** |" in overview
    assert "| `b` | 0.700 |" in overview  # as the random one
    assert "tokens 1000 (a); 2000 (b); site z.0 (a); z.1 (b)." in text
    assert "<strong>0.800</strong>" in page
    common, own = text.split("All numbers of `b`")
    assert text.count("for all") == 1
    assert "of a" in common
    assert "of b" in own
    assert "of a" not in own
    assert "| `a` | 12 (3) |" in text
    one = figures(results)["pareto_fve"][0]
    assert [list(trace.marker.symbol) for trace in one.data if trace.name == RANDOM] == [
        ["triangle-down", "circle-open"]
    ]
    assert [len(trace.x) for trace in one.data if trace.mode == "lines"] == []  # other sites are other tasks
    for held in scores.values():
        held["core"]["config"]["site"] = "z.0"
    lines = [trace for trace in figures(results)["pareto_fve"][0].data if trace.mode == "lines"]
    assert [(list(line.x), list(line.y)) for line in lines] == [([30.0], [0.8])]
