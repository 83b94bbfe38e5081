from potara_jax.reports import answers


def record(method, seed, score, heterogeneity="tasks"):
    sample = {"client": 0, "prompt": "1 + 1", "written": method, "right": "2"}
    scores = dict.fromkeys(("exact_match", "f1", "rouge_1"), score)
    place = {"heterogeneity": heterogeneity, "seed": seed}
    return {"method": method, **place, **scores, "samples": [sample]}


def test_metrics_are_means_over_seeds_with_their_spread():
    written = [record("local", 0, 0.5), record("local", 1, 0.7)]
    ((rows, title),) = answers.table({"written": written}).groups
    assert title == "one task or transformation per client"
    assert [row.texts for row in rows] == [["local", *["60.0 ± 14.1"] * 3]]


def test_answers_of_the_first_run_stand_side_by_side():
    written = [record("local", 0, 0.5), record("base", 0, 0.5)]
    written += [record("potara core", 0, 0.5), record("federated", 1, 0.5)]
    (section,) = answers.sections({"written": written})
    samples = section.parts[-1]
    assert samples.columns == ("Client", "Prompt", "Right", "local", "potara core")
    ((rows, _),) = samples.groups
    assert [row.texts for row in rows] == [["0", "1 + 1", "2", "local", "potara core"]]


def test_without_answers_there_is_no_section():
    assert answers.sections({"written": []}) == answers.sections({}) == []
