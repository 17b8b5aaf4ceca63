"""mask-FER: a learned mask on frozen CLIP features, for expressions across datasets.

Zhang, Zheng, Liang, Hu and Deng, "Generalizable Facial Expression Recognition", ECCV 2024
(arXiv 2408.10614). Written from its formulas; see ``docs/mask_fer.md``.
"""

from face_mllm.experts.mask_fer.expert import MaskFerExpert

__all__ = ["MaskFerExpert"]
