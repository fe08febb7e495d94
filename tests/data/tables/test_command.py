"""Other tools' features, labels and splits through `python -m asmil.data.pack`, and training on the imported folds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from asmil.data.pack import main
from asmil.data.splits import SplitPlan
from asmil.data.store import BagStore
from asmil.data.tables.given import GivenSplits
from asmil.errors import DataError
from asmil.experiment import open_experiment
from tasks.spec import load_experiment
from tests.data.foreign import tiles, write_clam
from tests.data.foreign_tables import SLIDES, acmil_split, mcat_clinical, part_columns
from tests.run_support import SURVIVAL, refusal, result_of, write_file

PARTS = {"train": SLIDES[:6], "val": SLIDES[6:8], "test": SLIDES[8:]}
POLARITY = ("--time-column", "survival_months", "--censor-column", "censorship")
Pack = Callable[..., None]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Converts twelve CLAM feature files into `store`, with further words of the command line."""
    features = tmp_path / "h5_files"
    features.mkdir()
    for number, slide in enumerate(SLIDES):
        write_clam(features / f"{slide}.h5", *tiles(4 + number))
    return lambda *words: main([str(features), "--out", str(tmp_path / "store"), "--workers", "1", *map(str, words)])


def test_mcat_table_and_splits_become_part_of_the_store(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = mcat_clinical(tmp_path / "tcga_blca_all_clean.csv.zip")
    folds = tmp_path / "5foldcv"
    folds.mkdir()
    for fold in range(3):
        test = [f"TCGA-{number:02d}" for number in (2 * fold, 2 * fold + 1)]
        train = [f"TCGA-{number:02d}" for number in range(6) if number // 2 != fold]
        part_columns(folds / f"splits_{fold}.csv", {"train": train, "val": test})
    pack("--labels", table, *POLARITY, "--splits", folds)
    store = BagStore.open(str(tmp_path / "store"))
    labels = store.labels()
    assert labels is not None
    assert labels["slide_id"].tolist() == list(SLIDES)
    assert labels["event"].tolist() == [event for event in (1, 0, 1, 1, 0, 0) for _ in range(2)]
    assert labels["time_months"].tolist() == [month for month in (10.0, 20.5, 3.25, 7.0, 44.0, 31.0) for _ in range(2)]
    content = store.given_splits()
    assert content is not None
    assert [fold.test for fold in GivenSplits.from_bytes(content, "x").folds] == [SLIDES[:4], SLIDES[4:8], SLIDES[8:]]
    assert store.info.provenance["labels"]["outcome"] == "event = 1 - censorship, time_months = survival_months"
    out = capsys.readouterr().out
    assert "outcome: 12 slides of 6 patients, 3 events (50.0 %)" in out
    assert "3 folds of MCAT/PORPOISE/SurvPath splits" in out
    for number, slide in enumerate(SLIDES):
        np.testing.assert_array_equal(store.read(slide).features_ND.numpy(), tiles(4 + number)[0].astype(np.float16))


def test_without_polarity_the_command_asks_and_writes_nothing(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = mcat_clinical(tmp_path / "t.csv")
    asked = refusal(lambda: pack("--labels", table, *POLARITY[:2]), capsys)
    assert asked.code == 2
    assert "--censor-column censorship gives 3 events among 6 patients (50.0 %)" in asked.message
    both = refusal(lambda: pack("--labels", table, *POLARITY, "--event-column", "train"), capsys)
    assert (both.code, both.message.startswith("--event-column (1 = event observed) and --censor-column")) == (2, True)
    alone = refusal(lambda: pack("--time-unit", "days"), capsys)
    assert (alone.code, "need --labels TABLE" in alone.message) == (2, True)
    assert not (tmp_path / "store").exists()


def test_labels_that_do_not_match_the_slides_need_a_word(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide,label\n" + "".join(f"{slide},1\n" for slide in (*SLIDES[1:], "TCGA-99-DX1")))
    refused = refusal(lambda: pack("--labels", table), capsys)
    assert refused.code == 2
    assert "1 labels without a slide: TCGA-99-DX1; 1 slides without a label: TCGA-00-DX1; " in refused.message
    assert not (tmp_path / "store").exists()
    pack("--labels", table, "--allow-missing")
    listed = BagStore.open(str(tmp_path / "store")).info.provenance["labels"]
    assert (listed["labels_without_a_slide"], listed["slides_without_a_label"]) == (["TCGA-99-DX1"], ["TCGA-00-DX1"])


def test_splits_that_tear_a_patient_are_refused_before_the_conversion(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = mcat_clinical(tmp_path / "t.csv")
    torn = acmil_split(tmp_path / "split_1.json", {**PARTS, "train": SLIDES[:5], "val": SLIDES[5:8]})
    refused = refusal(partial(pack, "--labels", table, *POLARITY, "--splits", torn), capsys)
    assert (refused.code, "1 patients have slides in two parts: TCGA-02 (train, val)" in refused.message) == (2, True)
    assert not (tmp_path / "store").exists()


def test_a_fold_is_trained_as_the_imported_splits_say(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = {"train": SLIDES[4:10], "val": SLIDES[10:], "test": SLIDES[:4]}
    paths = [part_columns(tmp_path / f"splits_{fold}.csv", parts) for fold, parts in enumerate((PARTS, turned))]
    pack("--labels", mcat_clinical(tmp_path / "t.csv"), *POLARITY, "--dtype", "float32", "--splits", *paths)
    said = capsys.readouterr().out.splitlines()
    start = said.index("use them with:") + 1
    block = yaml.safe_load("\n".join(said[start : start + 4]))
    columns = {"id": "slide_id", "group": "case_id", "time": "time_months", "event": "event", "covariates": ["age"]}
    assert block == {
        "data": {"labels": columns},
        "task": {"kind": "survival", "time_unit": "months"},
        "protocol": {"scheme": "given"},
    }
    changes = {
        "data.labels": block["data"]["labels"],
        "data.bag": "slide",
        "protocol": block["protocol"] | {"inner": {"holdout": 0.25}},
        "train.epochs": 1,
    }
    tiny = write_file(tmp_path, SURVIVAL, changes)
    result = result_of(tiny.run("--fold", 1))
    assert "fold 1, seed 7, 6 training and 2 validation bags" in capsys.readouterr().out
    (split_file,) = (tmp_path / "store/splits").glob("*.json")
    plan = SplitPlan.load(split_file)
    assert result["split"] == plan.hash
    trained = [plan.development(0, fold) for fold in range(2)]
    assert [(part.inner[0].train, part.inner[0].validation) for part in trained] == [
        (PARTS["train"], PARTS["val"]), (turned["train"], turned["val"])
    ]  # fmt: skip
    with pytest.raises(DataError, match="no fold 2"):
        open_experiment(load_experiment(tiny.file), tmp_path / "other").plan.development(0, 2)
