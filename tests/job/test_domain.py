"""Images outside of what a narrow model knows: counted, and told of once."""

from __future__ import annotations

from sca_batch.job.domain import DomainWatch
from sca_batch.job.events import ImageDone, OutsideDomain
from sca_batch.model.config import Domain

DOMAIN = Domain(
    name="shapes", least_logprob=-0.5, share_below=0.03, elsewhere="somebody/photographs"
)


def image(key, logprob):
    return ImageDone("shard-000000", key, "ok", 1, logprob=logprob)


def test_the_first_image_outside_is_told_and_all_are_counted():
    watch = DomainWatch("tiny", DOMAIN)
    assert watch.look(image("in.png", -0.5)) is None
    assert watch.look(image("a.png", -0.9)) == OutsideDomain(
        "a.png", "tiny", "shapes", -0.9, -0.5, 0.97, "somebody/photographs"
    )
    assert watch.look(image("b.png", -2.0)) is None
    assert watch.outside == 2


def test_images_without_captions_and_models_without_a_domain_say_nothing():
    watch = DomainWatch("tiny", DOMAIN)
    assert watch.look(image("empty.png", None)) is None
    assert watch.outside == 0
    assert DomainWatch("any", None).look(image("a.png", -99.0)) is None
