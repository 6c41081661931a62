#!/bin/sh
# How the PBS job with the number $1 fares: running, success or failed, as Snakemake asks.
# A PBS that keeps no record of jobs that have ended does not know -x; whether a job has ended well then shows in its files.
job=$(qstat -x -f "$1" 2>&1) || job=$(qstat -f "$1" 2>&1)
case $job in
    *"job_state = F"*"Exit_status = 0"* | *"Exit_status = 0"*"job_state = F"*) echo success ;;
    *"job_state = F"*) echo failed ;;
    *"Unknown Job"*) echo success ;;
    *) echo running ;;  # or PBS does not answer now
esac
