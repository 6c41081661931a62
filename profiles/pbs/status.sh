#!/bin/sh
# How the PBS job with the number $1 fares: running, success or failed, as Snakemake asks.
job=$(qstat -x -f "$1" 2>/dev/null) || { echo running; exit; }  # PBS does not answer now; ask again later
case $job in
    *"job_state = F"*)
        case $job in
            *"Exit_status = 0"*) echo success ;;
            *) echo failed ;;
        esac ;;
    *) echo running ;;
esac
