"""`ringspan plan` for machines that are not here: clusters as JSON, the search's choices, and the pipeline that a user
of three Macs measured. Models are files whose tensors are a hole. RINGSPAN_BIN names the program."""

import glob
import json
import os
import re
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_models  # noqa: E402

BIN = os.environ.get("RINGSPAN_BIN")
PROFILES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "profiles")
pytestmark = pytest.mark.skipif(not BIN, reason="RINGSPAN_BIN does not name the program")

MACHINE = {
    "name": "box", "memory_bytes": 64 << 30,
    "rates": {"read_bytes_per_s": 1e11, "small_s": 1e-6, "launch_s": 2e-6, "vector_bytes_per_s": 5e10,
              "weights_bytes_per_s": 8e10, "weights_few_flop_per_s": 1e12, "weights_many_flop_per_s": 2e12,
              "attend_bytes_per_s": {"f16": 8e10, "q8_0": [8e10, 7e10, 4e10], "q4_0": 6e10},
              "attend_many_flop_per_s": {"default": 1e12}},
}
LINK = {"latency_s": 2e-5, "bytes_per_s": 2e9}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Path of a sparse model by its shape."""
    directory, made = tmp_path_factory.mktemp("sparse"), {}

    def path(shape, weights="Q8_0"):
        if (shape, weights) not in made:
            file = str(directory / f"{shape}-{weights}.gguf")
            made[shape, weights] = tiny_models.make_shape(file, shape, 1 << 20, weights=weights, sparse=True)
        return made[shape, weights]

    return path


def call(*words):
    return subprocess.run([BIN, "plan", *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=300)


def plan(model, cluster, *words, code=0):
    done = call("-m", model, "--cluster", cluster, "--json", *words)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)["forecast"]


def write(tmp_path, cluster):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(cluster))
    return path


def machine(**changes):
    rates = {**MACHINE["rates"], **changes.pop("rates", {})}
    return {**MACHINE, **changes, "rates": rates}


def faster(factor):
    rates = MACHINE["rates"]
    return {"weights_bytes_per_s": factor * rates["weights_bytes_per_s"], "attend_bytes_per_s": 8e10 * factor}


def per_second(entry):
    return 1 / entry["seconds"]


def at(price, depth):
    return next(per_second(entry["token"]) for entry in price["depths"] if entry["depth"] == depth)


def test_three_macs_as_measured_and_what_context_parallelism_gives(models):
    """30 tokens/s and 6.8 behind 104,000 tokens, as the user of three Macs of 546 GB/s measured a pipeline; the same
    machines, their context shared out, and with 8-bit KV."""
    words = (models("qwen3-14b"), os.path.join(PROFILES, "seed-3x-m4-max.json"), "--ctx", 104001, "--depths",
             "0,104000")
    pipeline = plan(*words, "--ranks", 3, "--split", "pp")["choice"]
    assert at(pipeline, 0) == pytest.approx(30, rel=0.03) and at(pipeline, 104000) == pytest.approx(6.8, rel=0.03)
    shared = plan(*words)
    choice = shared["choice"]
    assert choice["options"]["ranks"] == 3 and choice["options"]["split"].startswith("r")
    assert at(choice, 104000) > 2.5 * at(pipeline, 104000)
    in_bytes = next(price for price in shared["other_kv"] if price["options"]["kv_k"] == "q8_0")
    assert at(in_bytes, 104000) > 3.5 * at(pipeline, 104000)
    read_once = plan(words[0], os.path.join(PROFILES, "3x-m4-max.json"), *words[2:], "--kv", "q8_0")["choice"]
    assert at(read_once, 104000) > 5 * at(pipeline, 104000)


def test_the_table(models):
    done = call("-m", models("llama-3-8b"), "--cluster", os.path.join(PROFILES, "4x-epyc-25gbe.json"), "--ctx", 200000,
                "--kv", "q8_0")
    assert done.returncode == 0 and done.stderr == "", done
    assert max(map(len, done.stdout.splitlines())) <= 90
    assert re.search(r"^ *199999 +\d+\.\d ", done.stdout, re.M) and "not chosen:" in done.stdout
    assert re.search(r"^ *\d +r\d +q8_0 +[\d.]+ +[\d.]+ +[\d.]+ % slower$", done.stdout, re.M)
    assert re.search(r"^ *4 +\w+ +f16 +[\d.]+ +[\d.]+ +[\d.]+ % slower$", done.stdout, re.M)


def test_every_profile_plans(models):
    for path in glob.glob(os.path.join(PROFILES, "*.json")):
        forecast = plan(models("llama-3-8b", "Q4_0"), path, "--ctx", 8192, "--depths", 0)
        assert 5 < at(forecast["choice"], 0) < 2000 and forecast["choice"]["fits"], path


def test_a_token_takes_its_parts(models, tmp_path):
    path = write(tmp_path, {"machines": [machine(), machine()], "link": LINK})
    forecast = plan(models("llama-3-8b"), path, "--ctx", 65536)
    prices = [forecast["choice"], *forecast["rejected"], *forecast["other_kv"]]
    for price in prices:
        for token in [price["token_at_end"], *(entry["token"] for entry in price["depths"])]:
            assert token["seconds"] == pytest.approx(sum(token[part] for part in ("weights", "kv", "network", "rest")))
    ends = [price["token_at_end"]["seconds"] for price in prices[: 1 + len(forecast["rejected"])] if price["fits"]]
    assert ends == sorted(ends) and len(ends) == 7
    assert {(p["options"]["ranks"], p["options"]["split"]) for p in prices} >= {(2, "tp"), (2, "pp"), (1, "r1")}


def test_a_slow_network_replicates_and_a_fast_one_slices(models, tmp_path):
    def choice(latency_s, bytes_per_s):
        path = write(tmp_path, {"machines": [{**machine()}] * 2, "link": {"latency_s": latency_s,
                                                                         "bytes_per_s": bytes_per_s}})
        return plan(models("llama-3-8b"), path, "--ctx", 131072)["choice"]["options"]

    assert choice(1e-6, 1e11)["split"] in ("r4", "tp") and choice(3e-3, 1e8)["split"] == "r1"
    assert choice(1, 1e6)["ranks"] == 1


def test_more_ranks_than_heads_share_these_in_groups(models, tmp_path):
    """Six machines and eight KV heads: three machines each share the context of four heads."""
    path = write(tmp_path, {"machines": [machine()] * 6, "link": LINK})
    words = (models("llama-3-8b"), path, "--ctx", 131072, "--depths", 0, "--ranks", 6)
    forecast = plan(*words)
    options = [price["options"] for price in [forecast["choice"], *forecast["rejected"]]]
    assert options[0]["tpa"] == 2 and options[0]["split"] in ("r3", "r4")
    assert {(o["split"], o["tpa"]) for o in options} == {
        ("tp", 1), ("pp", 1), ("r1", 1), ("r2", 1), *((split, tpa) for split in ("r3", "r4") for tpa in (1, 2, 3))}
    kv = [rank["kv_bytes"] for rank in forecast["choice"]["ranks"]]
    assert max(kv) < 1.01 * min(kv)
    given = plan(*words, "--tpa", 3)
    assert {(p["options"]["split"], p["options"]["tpa"]) for p in [given["choice"], *given["rejected"]]} == {
        ("r3", 3), ("r4", 3)}
    open_ranks = plan(models("llama-3-8b"), path, "--ctx", 8192, "--depths", 0, "--tpa", 2)
    assert {p["options"]["ranks"] for p in [open_ranks["choice"], *open_ranks["rejected"]]} == {4, 6}


def test_shares_follow_speed(models, tmp_path):
    path = write(tmp_path, {"machines": [machine(), machine(name="fast", rates=faster(3))], "link": LINK})
    choice = plan(models("llama-3-8b"), path, "--ctx", 131072, "--split", "r4")["choice"]
    assert [rank["machine"] for rank in choice["ranks"]] == ["fast", "box"]
    fast, slow = choice["ranks"]
    assert fast["kv_bytes"] / slow["kv_bytes"] == pytest.approx(3, rel=0.01)
    assert fast["token"]["kv"] == pytest.approx(slow["token"]["kv"], rel=0.05)
    assert fast["token"]["weights"] == pytest.approx(slow["token"]["weights"], rel=0.1)


def test_pages_and_weights_go_where_there_is_room(models, tmp_path):
    """Of a fast machine with little memory and a slow one with much, the slow one takes what does not fit."""
    small = machine(name="fast", memory_bytes=14 << 30, rates=faster(3))
    path = write(tmp_path, {"machines": [machine(), small], "link": LINK})
    forecast = plan(models("llama-3-8b"), path, "--ctx", 200000, "--split", "r4")
    choice = forecast["choice"]
    assert choice["fits"] and choice["options"]["ranks"] == 2
    for rank in choice["ranks"]:
        assert rank["held_bytes"] <= (14 << 30 if rank["machine"] == "fast" else 64 << 30)
    fast = next(rank for rank in choice["ranks"] if rank["machine"] == "fast")
    assert fast["held_bytes"] > 0.9 * (14 << 30), "what fits is used"
    wide = plan(models("llama-3-8b"), path, "--ctx", 200000)
    alone = next(p for p in [wide["choice"], *wide["rejected"]] if p["options"]["ranks"] == 1)
    assert not alone["fits"] and alone["ranks"][0]["machine"] == "fast"


def test_many_small_machines_fill_and_the_large_one_takes_the_rest(models, tmp_path):
    small = machine(name="small", memory_bytes=4 << 30)
    path = write(tmp_path, {"machines": [machine(), {**small, "count": 7}], "link": LINK})
    forecast = plan(models("llama-3-8b"), path, "--ctx", 400000, "--ranks", 8)
    choice = forecast["choice"]
    assert choice["fits"] and choice["context_max"] >= 400000
    for rank in choice["ranks"]:
        room = (4 << 30) if rank["machine"] == "small" else 64 << 30
        assert rank["held_bytes"] <= room and (rank["machine"] != "small" or rank["held_bytes"] > 0.9 * room)


def test_what_fits_nowhere_is_refused_with_what_would(models, tmp_path):
    path = write(tmp_path, {"machines": [machine(memory_bytes=12 << 30)] * 2, "link": LINK})
    done = call("-m", models("llama-3-8b"), "--cluster", path, "--ctx", 1000000)
    assert done.returncode == 2 and "does not" not in done.stderr
    largest = int(re.search(r"the largest context that fits is --ctx (\d+)\n$", done.stderr).group(1))
    assert call("-m", models("llama-3-8b"), "--cluster", path, "--ctx", largest).returncode == 0
    path = write(tmp_path, {"machines": [machine(memory_bytes=1 << 30)], "link": LINK})
    done = call("-m", models("llama-3-8b"), "--cluster", path, "--ctx", 4096)
    assert done.returncode == 2 and "no context fits this cluster" in done.stderr


def test_what_is_given_stays(models, tmp_path):
    path = write(tmp_path, {"machines": [machine()] * 3, "link": LINK})
    words = (models("llama-3-8b"), path, "--ctx", 32768, "--kv", "q8_0")
    given = plan(*words, "--ranks", 2, "--split", "r3", "--chunk", 700)["choice"]["options"]
    assert (given["ranks"], given["split"], given["chunk"], given["kv_k"]) == (2, "r3", 700, "q8_0")
    choice = plan(*words, "--split", "r4", "--shares", "2,1,1", "--weight-shares", "1,1,0")["choice"]
    kv = [rank["kv_bytes"] for rank in choice["ranks"]]
    assert kv[0] == pytest.approx(2 * kv[1], rel=0.01) and choice["ranks"][2]["token"]["weights"] < 1e-3
    choice = plan(*words, "--split", "r4", "--weight-shares", "0,1,1")["choice"]
    assert choice["ranks"][0]["token"]["weights"] < 1e-3 < choice["ranks"][1]["token"]["weights"]


BAD = [
    ({"machines": [], "link": LINK}, "machines: must be a list of machines"),
    ({"machines": [{}], "link": LINK}, "machines[0].name: is missing"),
    ({"machines": [MACHINE] * 2}, "link: must be an object with latency_s and bytes_per_s"),
    ({"machines": [MACHINE] * 2, "link": {"latency_s": -1, "bytes_per_s": 1e9}}, "link.latency_s: must be a number"),
    ({"machines": [MACHINE] * 2, "link": {"latency_s": 0, "bytes_per_s": 0}}, "link.bytes_per_s: must be a number"),
    ({"machines": [MACHINE], "speed": 3}, "speed: no property of a cluster has this name"),
    ({"machines": [{**MACHINE, "colour": 1}]}, "machines[0].colour: no property of a machine has this name"),
    ({"machines": [{**MACHINE, "memory_bytes": "4G"}]}, "machines[0].memory_bytes: must be a number"),
    ({"machines": [{**MACHINE, "threads": 0}]}, "machines[0].threads: must be a number from 1"),
    ({"machines": [{**MACHINE, "rates": []}]}, "machines[0].rates: must be an object"),
    ({"machines": [machine(rates={"launch_s": 1e9})]}, "machines[0].rates.launch_s: must be a number from 0 to 10"),
    ({"machines": [machine(rates={"wind_per_s": 1})]}, "machines[0].rates.wind_per_s: no rate of this name is known"),
    ({"machines": [machine(rates={"weights_bytes_per_s": {"Q9_9": 1e9}})]}, "Q9_9: no format of this name"),
    ({"machines": [machine(rates={"attend_bytes_per_s": {"f16": [1e9]}})]}, "attend_bytes_per_s.f16: must be a"),
    ({"machines": [machine(rates={"attend_bytes_per_s": {"f16": 1e9}})]}, "attend_bytes_per_s.q8_0: is missing"),
    ({"machines": [{**MACHINE, "name": ""}]}, "machines[0].name: must be a text of 1 to 47 bytes"),
    ({"machines": [{"profile": "abacus"}]}, "machines[0].profile: no such profile"),
    ({"machines": [{**MACHINE, "count": 65}]}, "machines[0].count: must be a number from 1 to 64"),
    ({"machines": [MACHINE] * 2, "links": [{"between": [0, 2], **LINK}]}, "links[0].between: must be the numbers"),
    ({"machines": [MACHINE] * 3, "links": [{"between": [0, 1], **LINK}]}, "machines 0 and 2: no link is given"),
    ([], "must be an object"),
]


@pytest.mark.parametrize(("cluster", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_cluster_is_refused_by_name(models, tmp_path, cluster, reason):
    path = write(tmp_path, cluster)
    done = call("-m", models("llama-3-8b"), "--cluster", path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"ringspan: {re.escape(str(path))}: [^\n]+\n", done.stderr) and reason in done.stderr


def test_a_limit_of_this_machine_says_nothing_of_others(models, tmp_path):
    path = write(tmp_path, {"machines": [MACHINE]})
    done = call("-m", models("llama-3-8b"), "--cluster", path, "--memory-limit", "1GiB")
    assert done.returncode == 2 and "memory_bytes" in done.stderr


def test_no_json_and_no_file_are_refused(models, tmp_path):
    (tmp_path / "broken.json").write_text('{"machines": [')
    assert "broken.json: line 1: " in call("-m", models("llama-3-8b"), "--cluster", tmp_path / "broken.json").stderr
    for name in (tmp_path / "absent.json", "absent"):
        done = call("-m", models("llama-3-8b"), "--cluster", name)
        assert done.returncode == 2 and "cannot read the cluster" in done.stderr


def test_links_of_pairs(models, tmp_path):
    slow = {"latency_s": 1e-3, "bytes_per_s": 1e8}
    pairs = [{"between": [a, b], **(slow if b == 2 else LINK)} for a, b in ((0, 1), (0, 2), (1, 2))]
    words = ("--ctx", 32768, "--ranks", 3, "--split", "r4")
    even = plan(models("llama-3-8b"), write(tmp_path, {"machines": [machine()] * 3, "link": LINK}), *words)
    uneven = plan(models("llama-3-8b"), write(tmp_path, {"machines": [machine()] * 3, "links": pairs}), *words)
    layers = 32
    more = uneven["choice"]["token_at_end"]["network"] - even["choice"]["token_at_end"]["network"]
    assert more > 0.9 * 4 * layers * (slow["latency_s"] - LINK["latency_s"])
