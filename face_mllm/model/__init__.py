"""Vision tower, projector and causal LLM as one model, registered with the Auto classes."""

from transformers import AutoConfig, AutoModel

from face_mllm.model.configuration import FaceMLLMConfig
from face_mllm.model.modeling import FaceMLLMForConditionalGeneration

AutoConfig.register(FaceMLLMConfig.model_type, FaceMLLMConfig, exist_ok=True)
AutoModel.register(FaceMLLMConfig, FaceMLLMForConditionalGeneration, exist_ok=True)

__all__ = ["FaceMLLMConfig", "FaceMLLMForConditionalGeneration"]
