"""What is bundled: a small trained Llama with its tokenizer and text, and ResNet-20's architecture.

`llama-2m` was trained by `scripts/train_zoo_llama.py` on public-domain text alone (US presidential
speeches, Shakespeare's plays); `TRAINING.json` beside it says how long and how well.
"""

from pathlib import Path

REFERENCE = Path(__file__).parent / "llama-2m"
CALIBRATION_TEXT = REFERENCE / "calibration.txt"
TEST_TEXT = REFERENCE / "test.txt"
