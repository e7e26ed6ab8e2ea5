"""The smallest VL-JEPA that goes the whole way; `data.path` is given on the command line."""

from configs.vl_jepa import quickstart


def get_config():
    config = quickstart.get_config()
    config.data.update(
        frames=4, size=32, cache="none", tokenizer="dataset", pairs_per_clip=1, query_length=8,
        text_length=12, threads=1,
    )  # fmt: skip
    config.model.shared_dim = 16
    config.model.x_encoder.update(width=24, depth=1, heads=2)
    config.model.predictor.update(width=24, depth=1, heads=2, kv_heads=2, mlp_width=32)
    config.model.y_encoder.update(tower="transformer", frozen=False, width=16, depth=1, heads=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(steps=8, global_batch=8, log_every=1, save_every=3)
    config.evaluation.update(batch_size=8, bars=())
    config.evaluation.retrieval.count = 8
    config.evaluation.zero_shot.update(count=8, labels=("colour",))
    with config.evaluation.ignore_type():
        for task in ("questions", "hard", "novel"):
            config.evaluation[task] = None
    return config
