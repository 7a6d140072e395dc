"""`vllm bench serve` as the CPU build has it, and its flags for images."""

# `vllm bench serve` itself; the `vllm` command asks for a distribution of that name, which the
# CPU build has not.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""

PICTURES = {
    "random-mm-base-items-per-request": "2",
    "random-mm-num-mm-items-range-ratio": "0",
    "random-mm-limit-mm-per-prompt": '{"image": 2, "video": 0}',
    "random-mm-bucket-config": "{(64, 64, 1): 1.0}",
}
