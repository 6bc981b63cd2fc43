"""The apps that are measured, each as short as people write it. `OPENAI_BASE_URL` says where the API is."""
