"""What profiles/pbs makes of the answers of PBS."""

import subprocess

import pytest
from conftest import REPOSITORY

RUNNING = "Job Id: 7\n    job_state = R\n"
ENDED = "Job Id: 7\n    job_state = F\n    substate = 92\n    Exit_status = {}\n"
NO_HISTORY = "qstat: PBS is not configured to maintain job history"
UNKNOWN = "qstat: Unknown Job Id 7"
DOWN = "qstat: cannot connect to server pbs (errno=111)"


@pytest.mark.parametrize(
    ("with_history", "without", "expected"),
    [
        ((0, RUNNING), None, "running"),
        ((0, ENDED.format(0)), None, "success"),
        ((0, ENDED.format(1)), None, "failed"),
        ((0, ENDED.format(271)), None, "failed"),
        ((1, DOWN), (1, DOWN), "running"),
        ((1, NO_HISTORY), (0, RUNNING), "running"),
        ((1, NO_HISTORY), (153, UNKNOWN), "success"),  # its files tell
    ],
)
def test_the_state_of_a_pbs_job(stand_in, with_history, without, expected):
    answers = {"-x": with_history, "-f": without or (9, "not asked")}
    lines = [f'{option}) cat <<"E"\n{text}\nE\nexit {status} ;;' for option, (status, text) in answers.items()]
    stand_in("qstat", "exec 2>&1\ncase $1 in\n" + "\n".join(lines) + "\nesac")
    status = [REPOSITORY / "profiles" / "pbs" / "status.sh", "7"]
    result = subprocess.run(status, capture_output=True, text=True)
    assert result.stdout.split() == [expected] and result.returncode == 0
