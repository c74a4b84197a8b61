"""Workers: Celery rings, the supervisor looks at the rows and tends the trainers."""
