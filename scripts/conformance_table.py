"""What the Autobahn suite found, as the page docs/CONFORMANCE.md; called by conformance.sh."""

import argparse
import collections
import json
import pathlib
import platform
import sys

HEAD = """# Conformance

What the [Autobahn test suite](https://github.com/crossbario/autobahn-testsuite) finds, as `make conformance` wrote it: the
real server with `--echo-route` on an ephemeral port, once on each driver. Cases 1 to 11 are frames, fragments, pings, closing,
UTF-8, limits and the messages of 16 MiB; 12 and 13 are permessage-deflate, which corecast does not offer, and are left out.

An informational case asks for what RFC 6455 leaves open; a non-strict one is answered in a way that the RFC allows and the
suite would not have chosen. A connection that is not closed cleanly is counted beside the verdict of its case.

| driver | cases | OK | non-strict | informational | failed | unclean closes |
|---|---|---|---|---|---|---|
"""
# How the suite names them.
FAILED = ("FAILED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT", "UNIMPLEMENTED")
KNOWN = ("OK", "NON-STRICT", "INFORMATIONAL", *FAILED)
CLEAN = ("OK", "INFORMATIONAL")


def case_order(number):
    return [int(part) for part in number.split(".")]


def read(folder, driver):
    """Cases of the driver's run by their numbers."""
    index = json.loads((folder / f"reports-{driver}" / "index.json").read_text())
    cases = index["corecast"]
    unknown = {case["behavior"] for case in cases.values()} - set(KNOWN)
    if unknown:
        sys.exit(f"conformance_table.py: the suite says {unknown}, which is unknown here: read its documentation")
    return cases


def row(driver, cases):
    told = collections.Counter(case["behavior"] for case in cases.values())
    unclean = sum(case["behaviorClose"] not in CLEAN for case in cases.values())
    counts = [len(cases), told["OK"], told["NON-STRICT"], told["INFORMATIONAL"], sum(told[name] for name in FAILED), unclean]
    return f"| {driver} | " + " | ".join(map(str, counts)) + " |\n", counts


def main():
    parser = argparse.ArgumentParser()
    for name in ("folder", "page"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--ok-min", type=int, required=True)
    for name in ("suite", "version", "commit"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("drivers", nargs="+")
    args = parser.parse_args()

    page, notes, is_good = HEAD, [], True
    for driver in args.drivers:
        cases = read(args.folder, driver)
        line, (_, ok, _, _, failed, unclean) = row(driver, cases)
        page += line
        is_good = is_good and failed == 0 and unclean == 0 and ok >= args.ok_min
        for number in sorted(cases, key=case_order):
            case = cases[number]
            if case["behavior"] != "OK" or case["behaviorClose"] not in CLEAN:
                notes.append((number, driver, case["behavior"].lower(), case["behaviorClose"].lower()))
    page += "\nCases that are not OK:\n\n| case | driver | verdict | close |\n|---|---|---|---|\n"
    page += "".join(f"| {' | '.join(note)} |\n" for note in notes)
    page += f"\nDue are no failed case, no unclean close and at least {args.ok_min} cases that are OK.\n"
    page += f"\n{args.version} at commit {args.commit}, {args.suite}, Linux {platform.release()} on {platform.machine()}; command:"
    page += " `make conformance`.\n"
    print(page[page.index("| driver") :], end="")
    args.page.write_text(page)
    if not is_good:
        sys.exit(f"conformance_table.py: failed, unclean or too few cases are OK; the pages of the suite are in {args.folder}")


if __name__ == "__main__":
    main()
