# Counts the outcomes of one machine's lines (`init` says what there are; `qemu STATUS` is added at the end), the later one of a test that was
# tried again, and tells what the tests themselves did not: a suite or a machine that did not come to its end.
# Variable: name (of machine and suite).

function record(test, outcome, remark) {
    if (!(test in outcomes)) tests[++all] = test
    else if (outcomes[test] == "FAILED" && outcome == "ok") print "flaky, failed at first: " test
    outcomes[test] = outcome
    if (remark) printf "test %s ... %s (%s)\n", test, outcome, remark
}

function count(outcome, i, sum) {
    for (i = 1; i <= all; i++) sum += outcomes[tests[i]] == outcome
    return sum + 0
}

/^test [^ ]+ +\.\.\. (ok|FAILED|ignored)/ { record(name "::" $2, $4) }
/^test result: / { result = 1 }
/^lab: (suite|again) / { result = 0 }
/^lab: status / && !result { record(name, "FAILED", "the test program ended with status " $3 " and no result") }
/^lab: end/ { end = 1 }
/^lab: qemu / && (!end || $3 != 0) {
    record(name "::machine", "FAILED", $3 == 124 ? "it was ended when its time was over" : "it did not come to its end")
}

END { printf "%d passed, %d failed, %d skipped\n", count("ok"), count("FAILED"), count("ignored") }
