"""Makes reference_values.npz again, with transformers' torch classes.

    python -m tests.text.make_reference_values

It needs torch and transformers 4.57 or later (the extra `peers`), and nothing
of this package but tests/testing/model_cases.py.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.testing import model_cases  # noqa: E402


def load(model_class, config, folder):
  """A torch model with the random weights of a case."""
  model_cases.write_config(folder, config)
  settings = transformers.AutoConfig.from_pretrained(folder)
  model = model_class.from_config(settings, attn_implementation='eager').eval()
  prefix = f'{model.base_model_prefix}.'
  state = {
    name.removeprefix(prefix): tensor
    for name, tensor in model.state_dict().items()
    if not (config.get('tie_word_embeddings') and name == 'lm_head.weight')
    and 'pooler' not in name
  }
  shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
  with torch.no_grad():
    for name, value in model_cases.weights(shapes, config).items():
      state[name].copy_(torch.from_numpy(value))
  return model


def decoder(name, config, folder):
  """Logits of each text, and what is generated behind it."""
  model = load(transformers.AutoModelForCausalLM, config, folder)
  for number, text in enumerate(model_cases.TEXTS):
    ids = torch.tensor([text])
    logits = model(ids).logits[0]
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=model_cases.NEW,
      do_sample=False,
      use_cache=True,
    )[0, len(text) :]
    yield f'{name}/logits/{number}', logits.numpy()
    yield f'{name}/answer/{number}', out.numpy().astype(np.int32)


def encoder(name, config, folder):
  """Hidden states of the texts, side by side as the encoder pads them."""
  model = load(transformers.AutoModel, config, folder)
  longest = max(map(len, model_cases.TEXTS))
  pad = config.get('pad_token_id', 0)
  ids = [t + [pad] * (longest - len(t)) for t in model_cases.TEXTS]
  mask = [[1] * len(t) + [0] * (longest - len(t)) for t in model_cases.TEXTS]
  hidden = model(
    torch.tensor(ids), attention_mask=torch.tensor(mask)
  ).last_hidden_state
  for number, text in enumerate(model_cases.TEXTS):
    yield f'{name}/hidden/{number}', hidden[number, : len(text)].numpy()


def main():
  """Writes the file."""
  values = {}
  torch.manual_seed(0)
  with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    for name, config in model_cases.DECODERS.items():
      values |= decoder(name, config, pathlib.Path(folder, name))
    for name, config in model_cases.ENCODERS.items():
      values |= encoder(name, config, pathlib.Path(folder, name))
  np.savez_compressed(model_cases.VALUES, **values)
  print(f'{model_cases.VALUES}: {model_cases.VALUES.stat().st_size} bytes')


if __name__ == '__main__':
  main()
