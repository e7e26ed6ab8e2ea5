from types import SimpleNamespace

from jepa.evaluation import charts


def test_health_is_drawn_apart_from_the_evaluations():
    history = [
        {
            "step": step,
            "loss": 1.0,
            "health/target/short/examples/effective_rank": 5.0 + step,
            "health/target/short/examples/mean_cosine": 0.5,
            "health/target/short/tokens/effective_rank": 3.0,
            "health/verdict": 0.0,
            "evaluation/recall": 0.5,
        }
        for step in (1, 2, 3)
    ]
    page = charts._training(SimpleNamespace(history=history))
    assert "Effective rank of the embeddings of a batch" in page
    assert "target/short ends at 8" in page
    assert "recall ends at 0.5" in page
    assert "verdict" not in page and "tokens" not in page
