from selfprune.reports.checkpoint_sentences import cache_sentence, checkpoint_lines, size_sentence, speed_sentence


def test_the_size_of_a_cut_checkpoint_is_a_share_and_that_of_zeros_is_none():
    cut = {"parameters": 3_500, "dense_parameters": 5_000, "bytes": 14_000_000}
    assert (
        size_sentence(cut)
        == "The winner's checkpoint holds 3,500 of the dense model's 5,000 parameters (70.0%), in 14.0 MB of weights."
    )
    whole = cut | {"parameters": 5_000}
    assert size_sentence(whole) == (
        "The winner's checkpoint keeps all 5,000 parameters of the dense model, zeros among them, in 14.0 MB of weights."
    )


def test_a_cache_that_was_cut_is_told_beside_the_dense_one():
    assert cache_sentence({"parameters": 1}) == ""
    said = cache_sentence({"cached_per_token": 1000, "dense_cached_per_token": 4000})
    assert said == "Of each token its KV cache keeps 1,000 numbers, the dense model's 4,000 (25.0%)."


def test_the_speed_is_told_in_tokens_per_second_and_held_against_what_was_asked_for():
    speed = {"workload": "reading 1 x 256 tokens", "n_tokens": 256, "dense_seconds": 0.128, "seconds": 0.064}
    told = "Reading 1 x 256 tokens, it makes 4,000 tokens per second, the dense model 2,000: 2.00 times as many."
    assert speed_sentence(speed) == told
    assert speed_sentence(speed | {"speedup_asked": 1.95}) == f"{told} That is what was asked for (1.95), within 3%."
    assert speed_sentence(speed | {"speedup_asked": 2.5}).startswith(f"{told} 2.5 was asked for: by the latency table the winner")
    model = {"parameters": 5, "dense_parameters": 10, "bytes": 20}
    assert checkpoint_lines({"model": model, "speed": [speed]}) == [size_sentence(model), "", told, ""]
