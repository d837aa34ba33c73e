"""Labels to wishes: defaults, OpenFaaS's own labels, and one sentence for each fault."""

import pytest

from infless_core.errors import InvalidInput
from infless_core.labels import GpuWish, Wishes, parse_wishes


def test_nothing_said_gives_the_defaults():
    """Half a second at the 99th percentile, batches up to 32, one instance, no scale to zero."""
    assert parse_wishes({}) == Wishes(
        latency_target_s=0.5, latency_percentile=99, batch_max=32, gpu=GpuWish.ALLOW,
        auth_secret="", scale_min=1, scale_max=20, scale_factor_percent=10, scale_to_zero=False, zero_after_s=900,
    )  # fmt: skip


def test_every_label_is_read():
    """Ours and OpenFaaS's."""
    labels = {
        "com.infless.latency.target": "200ms",
        "com.infless.latency.percentile": "99.9",
        "com.infless.batch.max": "8",
        "com.infless.batch.pad": "time=16",
        "com.infless.gpu": "never",
        "com.infless.auth.secret": "tokens.v1",
        "com.openfaas.scale.min": "2",
        "com.openfaas.scale.max": "5",
        "com.openfaas.scale.factor": "25",
        "com.openfaas.scale.zero": "True",
        "com.openfaas.scale.zero-duration": "1m",
    }
    assert parse_wishes(labels) == Wishes(
        latency_target_s=0.2, latency_percentile=99.9, batch_max=8, batch_pad="time=16", gpu=GpuWish.NEVER,
        auth_secret="tokens.v1", scale_min=2, scale_max=5, scale_factor_percent=25, scale_to_zero=True, zero_after_s=60,
    )  # fmt: skip


def test_other_labels_are_the_users_own():
    """Neither ours nor read: ignored."""
    assert parse_wishes({"team": "vision", "com.openfaas.scale.type": "rps"}) == Wishes()


def test_scale_to_zero_means_no_minimum():
    """Unless one is stated."""
    assert parse_wishes({"com.openfaas.scale.zero": "true"}).scale_min == 0


@pytest.mark.parametrize(
    ("label", "value", "allowed"),
    [
        ("com.infless.latency.target", "soon", "'200ms', '1.5s' or '1m30s'"),
        ("com.infless.latency.target", "0s", "1ms to 10m"),
        ("com.infless.latency.target", "11m", "1ms to 10m"),
        ("com.infless.latency.percentile", "100", "from 50 to below 100"),
        ("com.infless.latency.percentile", "nan", "from 50 to below 100"),
        ("com.infless.latency.percentile", "p99", "from 50 to below 100"),
        ("com.infless.batch.max", "0", "from 1 to 1024"),
        ("com.infless.batch.max", "many", "from 1 to 1024"),
        ("com.infless.batch.max", "9" * 5000, "from 1 to 1024"),
        ("com.infless.batch.max", "٣", "from 1 to 1024"),
        *[
            ("com.infless.batch.pad", value, "AXIS=LENGTHS[:VALUE] or LENGTHS[:VALUE]")
            for value in (
                "",
                "0",
                "-1",
                "time",
                "time=",
                "=16",
                "64,32",
                "16,16",
                "16,",
                "16:",
                "16:zero",
                "16;",
                "016",
                "٣",
                "1.5",
                "16:nan",
                "16:1:2",
                "1" * 5000,
            )
        ],
        ("com.infless.batch.pad", "time=16;time=32", "one for each axis"),
        ("com.infless.batch.pad", "16;32", "two rules for all axes"),
        ("com.infless.gpu", "maybe", "never, allow or require"),
        *[
            ("com.infless.auth.secret", value, "use a-z, 0-9, '-' and '.' inside")
            for value in ("", "Key", "a_b", "../key", "a/b", ".key", "key.", "a..b", "-a", "a\n", " a", "a" * 254)
        ],
        ("com.openfaas.scale.min", "-1", "from 0 to 1000"),
        ("com.openfaas.scale.factor", "0", "from 1 to 100"),
        ("com.openfaas.scale.factor", "101", "from 1 to 100"),
        ("com.openfaas.scale.factor", "10%", "from 1 to 100"),
        ("com.openfaas.scale.max", "0", "from 1 to 1000"),
        ("com.openfaas.scale.zero", "yes", "true or false"),
        ("com.openfaas.scale.zero-duration", "later", "'200ms', '1.5s' or '1m30s'"),
        ("com.openfaas.scale.zero-duration", "9" * 400 + "h", "'200ms', '1.5s' or '1m30s'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(label, value, allowed):
    """Label, value, what is allowed."""
    with pytest.raises(InvalidInput) as fault:
        parse_wishes({label: value})
    assert str(fault.value).startswith(f"label {label}: {value!r}")
    assert allowed in str(fault.value)


@pytest.mark.parametrize(
    "value",
    [
        "16",
        "16:0",
        "32,64,128",
        "time=16",
        "ids.1=32,64:0;time=16:-1e9",
        " a b = 8 : .5 ; 4 ",
        "input:0.1=4",
        "s + t=4",
    ],
)
def test_padding_rules_are_kept_as_written(value):
    """Who applies them reads them again, against the axes of its model."""
    assert parse_wishes({"com.infless.batch.pad": value}).batch_pad == value.strip()


def test_what_instances_are_told_by_variables():
    """The function's own, and padding rules where a label has some; the label wins."""
    own = {"batch_pad": "8", "key": "x"}
    assert parse_wishes({"com.infless.batch.max": "8"}).environment(own) == own
    assert parse_wishes({"com.infless.batch.pad": "16"}).environment(own) == {"batch_pad": "16", "key": "x"}


def test_an_unknown_label_of_ours_is_a_slip():
    """`com.infless.latencytarget` would else be ignored, and the target with it."""
    with pytest.raises(InvalidInput, match=r"com.infless.latencytarget: unknown; known are com.infless.latency.target"):
        parse_wishes({"com.infless.latencytarget": "1s"})


def test_all_faults_are_told_at_once():
    """Nobody should deploy three times to learn of three faults."""
    with pytest.raises(InvalidInput) as fault:
        parse_wishes({"com.infless.gpu": "x", "com.infless.batch.max": "x", "com.infless.nope": "x"})
    assert str(fault.value).count("; label") == 2


def test_minimum_above_maximum():
    """Each is right by itself, together they are not."""
    with pytest.raises(InvalidInput, match=r"com.openfaas.scale.min: 3 is above com.openfaas.scale.max, 2"):
        parse_wishes({"com.openfaas.scale.min": "3", "com.openfaas.scale.max": "2"})
