# Reads the lines of one machine (`init` says what there are) and prints them with the machine's name; the last is the count.
# Variables: machine, ended (the status of QEMU comes as the last line, `lab: qemu STATUS`).

function count(outcome, i, sum) {
    for (i = 1; i <= tests; i++) sum += outcomes[names[i]] == outcome
    return sum + 0
}

# An outcome replaces an earlier one of the same test: it was tried again.
function record(name, outcome, remark) {
    if (!(name in outcomes)) names[++tests] = name
    else if (outcome == "ok") remark = " (flaky: failed at first)"
    outcomes[name] = outcome
    printf "test %s::%s ... %s%s\n", machine, name, outcome, remark
    fflush()
}

/^test [^ ]+ +\.\.\. (ok|FAILED|ignored)/ {
    name = $2
    outcome = $4
    sub(/^test [^ ]+ +\.\.\. [^ ]+/, "")
    record(suite "::" name, outcome, $0)
    next
}
/^test result: / { result = 1 }
/^lab: (suite|again) / { result = 0 }
/^lab: suite / { suite = $3 }
# A test program that ended without its own last line did not run to its end.
/^lab: status / && !result { record(suite, "FAILED", " (status " $3 ")") }
/^lab: end/ { complete = 1 }
/^lab: qemu / {
    if (!complete || $3 != 0) record("machine", "FAILED", $3 == 124 ? " (it hung: ended after its time)" : " (it did not come to its end)")
    next
}
NF { print machine " " $0; fflush() }

END { printf "%d passed, %d failed, %d skipped\n", count("ok"), count("FAILED"), count("ignored") }
