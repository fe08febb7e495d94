"""A made-up survival cohort for demonstrations: shaped like TCGA-BLCA, with known truth and no download.

Every patient has a latent risk z. It drives the time to death (Weibull, proportional hazards), the share of aggressive
tiles in the patient's slides, and how aggressive those tiles look (their grade). All other tiles carry a grade that
means nothing, each slide has a stain shift, and necrosis, inflammation and stroma come in shares unrelated to z: a
model that finds the aggressive tiles knows more than one that averages all of them. Age and stage follow z weakly.

Nothing here is clinical data. The store says `simulated`, and so does everything computed from it.

    P phenotypes    N tiles of a slide    D feature width
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter

__all__ = ["SimulatedSlide", "harrell_c", "simulate_patients", "simulate_slides", "write_cohort"]

NUM_PATIENTS = 440
NUM_FEATURES = 512
SEED = 23
PHENOTYPES = ("stroma", "normal", "inflammation", "necrosis", "aggressive")
AGGRESSIVE = PHENOTYPES.index("aggressive")

_LOG_HAZARD_PER_RISK = 1.6
_MEDIAN_SURVIVAL_MONTHS, _SURVIVAL_SHAPE = 40.0, 1.1
_CENSORING_SCALE_MONTHS, _CENSORING_SHAPE = 42.0, 1.2
_AGE_MEAN, _AGE_SD, _AGE_RISK_CORRELATION = 68.0, 10.5, 0.35
_STAGE_NOISE, _STAGE_CUTS = 1.9, (-1.6, 0.2, 1.8)
_MORE_SLIDES_CHANCE = (0.14, 0.04, 0.01)

_MEDIAN_TILES, _TILES_LOG_SD, _TILES_RANGE = 120, 0.5, (16, 1000)
_SHARE_INTERCEPT, _SHARE_PER_RISK, _SHARE_SLIDE_NOISE = -2.4, 1.1, 0.15
_OTHER_PHENOTYPES_DIRICHLET = (4.0, 2.5, 1.2, 0.8)

_PHENOTYPE_SCALE, _GRADE_SCALE = 7.0, 3.5
_GRADE_TILE_SD, _MEANINGLESS_GRADE_SD = 0.6, 1.2
_NUM_TEXTURES, _NUM_STAINS, _STAIN_SHIFT = 16, 16, 0.5
_TILE_NOISE, _COMMON_SCALE = 0.2, 0.3
_TILE_LEVEL0_PX = 512
_TISSUE_SHARE_OF_SQUARE = 0.7


@dataclass(frozen=True)
class SimulatedSlide:
    """One slide of the cohort.

    Attributes:
        slide_id: Patient and running number.
        features_ND: Float32 tile features.
        coords_N2: Int32 top-left corners in level-0 pixels.
        is_aggressive_N: Truth per tile.
    """

    slide_id: str
    features_ND: np.ndarray
    coords_N2: np.ndarray
    is_aggressive_N: np.ndarray


def write_cohort(directory: Path) -> None:
    """Write the store; columns `slide`, `patient`, `os_months`, `event`, `age`, `stage`, `oracle_risk`.

    Args:
        directory: Empty or absent.
    """
    patients = simulate_patients(np.random.default_rng((SEED, 0)))
    oracle = harrell_c(patients["os_months"], patients["event"], patients["oracle_risk"])
    facts = DatasetFacts(
        encoder="simulated",
        magnification=20,
        mpp=0.5,
        tile_size=256,
        coord_unit="level0_px",
        coord_origin="top_left",
        provenance={"source": "asmil.data.simulated", "seed": SEED},
        simulated=True,
        facts={
            "oracle_c_index": round(oracle, 4),
            "oracle_outputs": {"risk": "oracle_risk"},
            "chance": {"c_index": 0.5},
            "num_patients": len(patients),
            "event_rate": round(float(patients["event"].mean()), 4),
        },
    )
    rows = []
    with BagWriter(directory, num_features=NUM_FEATURES, dtype="float16", facts=facts) as writer:
        for row, patient in enumerate(patients.to_dict("records")):
            slides = simulate_slides(np.random.default_rng((SEED, 1, row)), patient["patient"], patient["oracle_risk"])
            for slide in slides:
                writer.add(
                    slide.slide_id,
                    slide.features_ND,
                    coords_N2=slide.coords_N2,
                    instance_labels_N=slide.is_aggressive_N,
                )
                rows.append({"slide": slide.slide_id, **patient})
        writer.set_labels(pd.DataFrame(rows))


def simulate_patients(generator: np.random.Generator, num_patients: int = NUM_PATIENTS) -> pd.DataFrame:
    """Draw patients: latent risk, follow-up in months, event, age in years, stage 1 to 4.

    Args:
        generator: Source of randomness.
        num_patients: How many.

    Returns:
        One row per patient.
    """
    risk, age_noise, stage_noise = generator.standard_normal((3, num_patients))
    death_scale = _MEDIAN_SURVIVAL_MONTHS / np.log(2) ** (1 / _SURVIVAL_SHAPE)
    hazard_ratio = np.exp(_LOG_HAZARD_PER_RISK * risk)
    death = death_scale * (generator.standard_exponential(num_patients) / hazard_ratio) ** (1 / _SURVIVAL_SHAPE)
    censoring = _CENSORING_SCALE_MONTHS * generator.standard_exponential(num_patients) ** (1 / _CENSORING_SHAPE)
    age = _AGE_RISK_CORRELATION * risk + np.sqrt(1 - _AGE_RISK_CORRELATION**2) * age_noise
    return pd.DataFrame(
        {
            "patient": [f"SIM-{number:04d}" for number in range(1, num_patients + 1)],
            "os_months": np.maximum(np.minimum(death, censoring).round(2), 0.03),
            "event": (death <= censoring).astype(np.int64),
            "age": (_AGE_MEAN + _AGE_SD * age).round().clip(30, 90).astype(np.int64),
            "stage": 1 + np.digitize(risk + _STAGE_NOISE * stage_noise, _STAGE_CUTS),
            "oracle_risk": risk.round(4),
        }
    )


def simulate_slides(generator: np.random.Generator, patient: str, risk: float) -> list[SimulatedSlide]:
    """Draw the slides of one patient, independently of how many other patients there are.

    Args:
        generator: Source of randomness, one per patient.
        patient: Patient id; slide ids begin with it.
        risk: The patient's latent risk.

    Returns:
        One to four slides.
    """
    num_slides = 1 + int((generator.random() < np.array(_MORE_SLIDES_CHANCE)).sum())
    return [_simulate_slide(generator, f"{patient}-DX{number}", risk) for number in range(1, num_slides + 1)]


def harrell_c(time: pd.Series, event: pd.Series, risk: pd.Series) -> float:
    """Harrell's C of a risk: the share of comparable pairs in which the earlier death has the higher risk."""
    time_B, risk_B = time.to_numpy(), risk.to_numpy()
    comparable_BB = (time_B[:, None] < time_B[None, :]) & (event.to_numpy()[:, None] == 1)
    order_BB = np.sign(risk_B[:, None] - risk_B[None, :])
    return float(0.5 + 0.5 * order_BB[comparable_BB].mean())


def _simulate_slide(generator: np.random.Generator, slide_id: str, risk: float) -> SimulatedSlide:
    num_tiles = int(np.clip(_MEDIAN_TILES * np.exp(_TILES_LOG_SD * generator.standard_normal()), *_TILES_RANGE))
    shares_P = _phenotype_shares(generator, risk)
    cells_N2 = _tissue_cells(num_tiles)
    phenotypes_N = _place_phenotypes(generator, generator.choice(len(PHENOTYPES), size=num_tiles, p=shares_P), cells_N2)
    is_aggressive_N = phenotypes_N == AGGRESSIVE
    meaningless = _MEANINGLESS_GRADE_SD * generator.standard_normal()
    grade_N = np.where(is_aggressive_N, risk, meaningless) + _GRADE_TILE_SD * generator.standard_normal(num_tiles)
    features_ND = _tile_features(generator, phenotypes_N, grade_N)
    return SimulatedSlide(slide_id, features_ND, (_TILE_LEVEL0_PX * cells_N2).astype(np.int32), is_aggressive_N)


def _phenotype_shares(generator: np.random.Generator, risk: float) -> np.ndarray:
    logit = _SHARE_INTERCEPT + _SHARE_PER_RISK * risk + _SHARE_SLIDE_NOISE * generator.standard_normal()
    aggressive = 1 / (1 + np.exp(-logit))
    return np.append(generator.dirichlet(_OTHER_PHENOTYPES_DIRICHLET) * (1 - aggressive), aggressive)


def _tissue_cells(num_tiles: int) -> np.ndarray:
    """Grid cells (x, y) of a round piece of tissue, row by row; shape [N, 2]."""
    side = int(np.ceil(np.sqrt(num_tiles / _TISSUE_SHARE_OF_SQUARE)))
    rows, columns = np.divmod(np.arange(side * side), side)
    distance = (rows - (side - 1) / 2) ** 2 + (columns - (side - 1) / 2) ** 2
    kept = np.sort(np.argsort(distance, kind="stable")[:num_tiles])
    return np.stack([columns[kept], rows[kept]], axis=1)


def _place_phenotypes(generator: np.random.Generator, phenotypes_N: np.ndarray, cells_N2: np.ndarray) -> np.ndarray:
    """The same phenotypes, arranged in bands across the tissue with ragged borders."""
    angle = 2 * np.pi * generator.random()
    position_N = cells_N2[:, 0] * np.cos(angle) + cells_N2[:, 1] * np.sin(angle)
    position_N += 0.1 * np.ptp(cells_N2) * generator.standard_normal(len(cells_N2))
    band_of_phenotype = generator.permutation(len(PHENOTYPES))
    placed_N = np.empty_like(phenotypes_N)
    placed_N[np.argsort(position_N)] = phenotypes_N[np.argsort(band_of_phenotype[phenotypes_N], kind="stable")]
    return placed_N


@dataclass(frozen=True)
class _FeatureSpace:
    """Fixed directions of feature space, each of length about 1; drawn once, the same for every slide."""

    phenotypes_PD: np.ndarray
    grade_D: np.ndarray
    textures_TD: np.ndarray
    stains_SD: np.ndarray
    common_D: np.ndarray

    @classmethod
    @functools.cache
    def draw(cls) -> _FeatureSpace:
        generator = np.random.default_rng((SEED, 2))
        num_directions = len(PHENOTYPES) + 1 + _NUM_TEXTURES + _NUM_STAINS
        signs = generator.integers(0, 2, size=(num_directions, NUM_FEATURES), dtype=np.int8) * 2 - 1
        directions = (signs / np.sqrt(NUM_FEATURES)).astype(np.float32)
        phenotypes, grade, textures, stains = np.split(directions, np.cumsum([len(PHENOTYPES), 1, _NUM_TEXTURES]))
        common = _COMMON_SCALE * generator.standard_normal(NUM_FEATURES, dtype=np.float32)
        return cls(phenotypes, grade[0], textures, stains, common)


def _tile_features(generator: np.random.Generator, phenotypes_N: np.ndarray, grade_N: np.ndarray) -> np.ndarray:
    """Sum of all that makes a tile's features; without matrix products, whose rounding differs between machines."""
    space, num_tiles = _FeatureSpace.draw(), len(phenotypes_N)
    features_ND = _TILE_NOISE * generator.standard_normal((num_tiles, NUM_FEATURES), dtype=np.float32)
    features_ND += space.common_D + _PHENOTYPE_SCALE * space.phenotypes_PD[phenotypes_N]
    features_ND += _GRADE_SCALE * grade_N.astype(np.float32)[:, None] * space.grade_D
    for texture_D in space.textures_TD:
        features_ND += generator.standard_normal((num_tiles, 1), dtype=np.float32) * texture_D
    # stains move the directions that matter too, so a slide's mean is not to be trusted
    shifted_SD = np.concatenate([space.phenotypes_PD, space.grade_D[None], space.stains_SD])
    amounts_S1 = _STAIN_SHIFT * generator.standard_normal((len(shifted_SD), 1), dtype=np.float32)
    features_ND += (amounts_S1 * shifted_SD).sum(axis=0)
    return features_ND
