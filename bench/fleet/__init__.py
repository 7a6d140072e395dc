"""Stock vLLM and pixtral-serve on several GPUs of one machine, asked by turns."""
