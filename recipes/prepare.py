"""Read, tokenise and cache a recipe's corpora; a second run starts at once."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.cli import main


def prepare(config: DictConfig) -> None:
    """Make every token store that the recipe needs and print what is in them."""
    from recipes.build import build_data

    data = build_data(config)
    data.prepare_data()
    names = [*data.sources, *(["validation"] if data.validation else [])]
    print(f"{'source':<16}{'documents':>12}{'tokens':>16}{'median':>10}{'longest':>10}  store")
    for name in names:
        store = data.prepare_store(name)
        lengths = sorted(store.lengths.tolist())
        print(
            f"{name:<16}{len(store):>12,}{store.num_tokens:>16,}{lengths[len(lengths) // 2]:>10,}{lengths[-1]:>10,}"
            f"  {store.folder}"
        )


if __name__ == "__main__":
    main("prepare", prepare, doc=__doc__ or "")
