# tools/run.sh does the work, and runs without make too: tools/run.sh demo, tools/run.sh test.

.PHONY: help demo test check clean

help:
	@bash tools/run.sh || true

# Train on sample_data/, restore it, and save images with their PSNR: make demo ARGS="--help"
demo:
	@bash tools/run.sh demo $(ARGS)

# The checkers and the whole test suite on a virtual screen: make test ARGS="-k noise"
test:
	@bash tools/run.sh test $(ARGS)

# ruff, codespell and mypy alone
check:
	@bash tools/run.sh check

# Remove the environment and all that is made on the way
clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
