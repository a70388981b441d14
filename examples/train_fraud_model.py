"""Train a small model that tells fraudulent card payments from honest ones, and write it as ONNX.

    python examples/train_fraud_model.py [FOLDER]

Writes `fraud.onnx`, and `fraud_sample.json` with a few payments and what scikit-learn itself says of them. The payments
are made up by a seeded generator, so that the same libraries always make the same files. Needs scikit-learn and
skl2onnx; those who only use the model need neither.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES = (
    "amount",
    "hour",
    "days_since_last_payment",
    "payments_last_day",
    "distance_km",
    "card_present",
    "merchant_risk",
    "account_age_years",
)
INPUT, OUTPUT = "tensor", "probabilities"


def payments(count: int, seed: int = 7) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return made-up payments, a row of `FEATURES` each, and which of them are fraud: about one in twelve."""
    rng = np.random.default_rng(seed)
    fraud = (rng.random(count) < 0.08).astype(np.int64)
    honest = 1 - fraud
    columns = (
        rng.lognormal(3.2 + 0.6 * fraud, 0.9),
        np.mod(rng.normal(14 * honest + 9 * fraud, 5.0), 24),
        rng.exponential(3.0 + 3.0 * fraud),
        rng.poisson(1.2 + 1.0 * fraud),
        rng.lognormal(1.5 + 0.9 * fraud, 1.0),
        (rng.random(count) < 0.75 - 0.3 * fraud),
        np.clip(rng.beta(2, 6, count) + 0.1 * fraud, 0, 1),
        rng.gamma(3.0, 2.0, count) * (1 - 0.3 * fraud),
    )
    return np.column_stack(columns).astype(np.float32), fraud


def main(folder: Path) -> None:
    """Train, compare the ONNX file with scikit-learn, write both files into `folder`."""
    rows, labels = payments(20_000)
    known, unseen, known_labels, unseen_labels = train_test_split(rows, labels, test_size=0.25, random_state=7)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known, known_labels)
    exported = to_onnx(
        model,
        initial_types=[(INPUT, FloatTensorType([None, len(FEATURES)]))],
        options={id(model): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    exported.doc_string = "Probability that a card payment is fraud; columns: " + ", ".join(FEATURES)
    (folder / "fraud.onnx").write_bytes(exported.SerializeToString())

    by_risk = unseen[np.argsort(model.predict_proba(unseen)[:, 1])]
    sample = by_risk[[len(by_risk) * part // 1000 for part in (20, 500, 800, 900, 950, 970, 980, 990, 996, 999)]]
    written = {
        "input": INPUT,
        "output": OUTPUT,
        "features": list(FEATURES),
        "rows": [[float(str(value)) for value in row] for row in sample],
        "expected": [round(float(p), 8) for p in model.predict_proba(sample)[:, 1]],
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in written.items()]
    (folder / "fraud_sample.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    score = roc_auc_score(unseen_labels, model.predict_proba(unseen)[:, 1])
    print(f"Trained on {len(known):,} payments; area under the ROC curve on {len(unseen):,} others: {score:.4f}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
