# From raw data to score: `snakemake --cores 8 results/xsum/rouge.txt`. What to run is in configs/config.yaml, the stages
# are in workflow/rules/, what they do in workflow/scripts/.

from snakemake.utils import min_version

min_version("9.11")


resource_scopes:
    gpu_jobs="local",  # of one machine


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/study.smk"


rule all:
    default_target: True
    input:
        tables(),


install(workflow, OF_RULES)
check_targets(workflow, study)
