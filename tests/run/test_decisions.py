"""Which pairs later stages take, by the rule and by a person."""

import csv
import io

import pytest

from cloudjob.errors import ConfigError, InputError, SystemTroubleError
from cloudjob.files import write_jsonl, write_text
from cloudjob.run import decisions
from cloudjob.run.folder import RunFolder

HEAD = "pair,decision,reason,reviewer,version\n"


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run with three shown pairs, of which the rule accepts the first two."""
    found = RunFolder(tmp_path)
    rows = [("a", True, True), ("b", False, True), ("c", True, True), ("d", False, False), ("e", True, False)]
    names = ("pair", "shown", "accepted")
    write_jsonl(found.pairs, [dict(zip(names, row, strict=True)) | {"version": f"v{row[0]}"} for row in rows])
    return found


def accepted(folder: RunFolder, text: str) -> list[tuple[str, int]]:
    write_text(folder.decisions, HEAD + text)
    return [(row["pair"], row["number"]) for row in decisions.accepted_pairs(folder)]


def test_a_person_overrules_the_rule_and_a_pair_keeps_its_number(folder):
    assert accepted(folder, "") == [("a", 0), ("c", 1)]
    assert accepted(folder, "a,reject,,Ada,va\n") == [("c", 1)]
    assert accepted(folder, "e,accept,,Ada,ve\n") == [("a", 0), ("c", 1), ("e", 2)]
    assert accepted(folder, "a,reject,,Ada,va\na,accept,,Ada,va\n") == [("a", 0), ("c", 1)]  # the last word


def test_a_decision_counts_for_its_version_of_a_shown_pair_alone(folder):
    assert accepted(folder, "a,reject,,Ada,v0\nb,accept,,Ada,vb\n") == [("a", 0), ("c", 1)]


def test_without_pairs_or_a_review_there_is_nothing_to_take(folder, tmp_path):
    with pytest.raises(InputError, match="cloudjob review"):
        decisions.accepted_pairs(folder)
    with pytest.raises(InputError, match="cloudjob pair"):
        decisions.shown_pairs(RunFolder(tmp_path / "other"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "p,accept,,me,1\np,maybe,,me,1\n", r"decisions\.csv:3 .*accept or reject"),
        (HEAD + ",accept,,me,1\n", r"decisions\.csv:2"),
        (HEAD + "p,accept,,me,\n", r"decisions\.csv:2"),
        (HEAD + "p,accept\n", r"decisions\.csv:2"),
        ("pair,decision\np,accept\n", r"decisions\.csv:1 .*pair,decision,reason,reviewer,version"),
        ("", r"decisions\.csv:1"),
    ],
)
def test_decisions_written_by_hand_are_checked(folder, text, said):
    write_text(folder.decisions, text)
    with pytest.raises(ConfigError, match=said):
        decisions.read(folder.decisions)


def test_what_a_spreadsheet_writes_is_read(folder):
    folder.decisions.parent.mkdir()
    folder.decisions.write_bytes(b'\xef\xbb\xbfversion,pair,decision,note\r\n1,p,accept,"a\r\nb"\r\n')
    assert decisions.read(folder.decisions) == [{"version": "1", "pair": "p", "decision": "accept", "note": "a\r\nb"}]
    assert decisions.read(folder.root / "none.csv") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_european_spreadsheets_save_it_otherwise(folder, encoding, separator, end):
    table = [
        ["pair ", "decision", "reason", "reviewer", "version"],
        ["a", "reject", "hazy; wet, too", "Jörn", "va"],
        ["", "", "", "", ""],
        ["e", "accept ", '"fine"', "", "ve"],
        [" "],
    ]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(table)
    folder.decisions.parent.mkdir()
    folder.decisions.write_bytes(text.getvalue().encode(encoding))
    rows = decisions.read(folder.decisions)
    assert [[row[name.strip()] for name in table[0]] for row in rows] == [
        ["a", "reject", "hazy; wet, too", "Jörn", "va"],
        ["e", "accept", '"fine"', "", "ve"],
    ]
    assert [row["pair"] for row in decisions.accepted_pairs(folder)] == ["c", "e"]


def test_what_the_system_refuses_is_no_mistake_of_a_person(folder):
    folder.decisions.mkdir(parents=True)
    with pytest.raises(SystemTroubleError, match=r"decisions\.csv: Is a directory"):
        decisions.read(folder.decisions)


# --- products without a clear date -------------------------------------------------------------------------------
RULES = {"cloudy_range": (0.01, 0.9), "lowest_sun": 5.0}


def lone(cloudy: str, **changes) -> dict:
    """A shown pair that the rule rejected for its clear date."""
    facts = {"pair": f"pair of {cloudy}", "cloudy": cloudy, "clear": "c", "reference": None, "days": 3.0}
    facts |= {"reference_days": None, "version": "v", "shown": True, "accepted": False, "cloudy_cloud": 0.3}
    return facts | {"sun_elevation": [20.0, 3.0], "reasons": ["clear date has 0.400 cloud"]} | changes


@pytest.fixture
def lonely(tmp_path):
    """A function: the products that stand alone of these rows, where a person has decided so."""

    def of(*rows: dict, decided: str = "") -> list[dict]:
        folder = RunFolder(tmp_path / "alone")
        write_jsonl(folder.pairs, rows)
        folder.decisions.parent.mkdir(parents=True, exist_ok=True)
        folder.decisions.write_text(f"pair,decision,reason,reviewer,version\n{decided}")
        return decisions.unpaired(folder, **RULES)

    return of


def test_a_product_stands_alone_where_the_rule_rejected_its_clear_date(lonely):
    (found,) = lonely(lone("a"), lone("b", accepted=True), lone("c", shown=False))
    assert (found["cloudy"], found["version"]) == ("a", "v")
    assert [found[key] for key in ("clear", "reference", "days", "reference_days")] == [None] * 4


def test_a_product_without_any_candidate_stands_alone_too(lonely):
    (found,) = lonely(lone("a", clear=None, shown=False), lone("b", shown=False))
    assert found["cloudy"] == "a"
    assert lonely(lone("a", clear=None, shown=False, cloudy_cloud=0.95)) == []


@pytest.mark.parametrize(
    "changes",
    [{"cloudy_cloud": 0.95}, {"cloudy_cloud": 0.0}, {"sun_elevation": [4.9, 30.0]}, {"sun_elevation": [None, 30.0]}],
)
def test_a_product_that_breaks_a_rule_itself_does_not(lonely, changes):
    assert lonely(lone("a", **changes)) == []


@pytest.mark.parametrize(
    ("decision", "version", "alone"), [("reject", "v", 0), ("accept", "v", 0), ("reject", "old", 1)]
)
def test_what_a_person_has_decided_counts(lonely, decision, version, alone):
    """One that was accepted is a pair. What the stage review notes for the rule is no decision."""
    assert len(lonely(lone("a"), decided=f"pair of a,{decision},,me,{version}\n")) == alone
    by_rule = lonely(lone("a"), decided=f"pair of a,{decision},hazy,rule,{version}\n")
    assert len(by_rule) == (decision == "reject")
